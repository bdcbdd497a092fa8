"""Runs the units of instances where systemd is not PID 1: child processes, systemd's contract.

The rules are in `child_unit`, one unit's process and timers in `supervised_unit`; here are the
start of processes and the notify socket. Children
get SIGTERM when this process dies, and each leads a process group that is killed with its end.
"""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rolemesh.agent.child_events import Notified, ResetWanted
from rolemesh.agent.child_unit import Limits
from rolemesh.agent.notify_socket import NotifySocket
from rolemesh.agent.supervised_unit import SupervisedUnit
from rolemesh.agent.unit_control import UnitStatus
from rolemesh.errors import UnitStuck
from rolemesh.names import InstanceName
from rolemesh.runtime.child_process import ChildProcess

logger = logging.getLogger(__name__)

DEFAULT_LIMITS: Final = Limits()

# What this process was told by its own service manager is not for its children.
_OWN_VARIABLES: Final = frozenset({
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
    "RUNTIME_DIRECTORY", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY", "INVOCATION_ID", "MAINPID",
})  # fmt: skip
_DIRECTORY_MODE: Final = 0o770


def rolemesh_llama_argv(
    instance: InstanceName, *, parameters: Path, config_args: Sequence[str]
) -> tuple[str, ...]:
    """Return how to start an instance's rolemesh-llama; `config_args` are its --config options."""
    return (
        *(sys.executable, "-m", "rolemesh.llama", instance),
        *("--parameters", str(parameters)),
        *config_args,
    )


class ChildSupervisor:
    """UnitControl by child processes; an async context manager that ends with all of them.

    `directory` is where the instances' runtime directories are made. `argv_of` says what to
    execute for an instance. Enter it in the main thread: its end is what children die with.
    """

    def __init__(
        self,
        *,
        directory: Path,
        argv_of: Callable[[InstanceName], Sequence[str]],
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._directory = directory
        self._argv_of = argv_of
        self._limits = limits
        self._units: dict[InstanceName, SupervisedUnit] = {}
        self._subscribers: list[Callable[[UnitStatus], None]] = []
        self._exit_stack = contextlib.ExitStack()
        self._notify_socket: NotifySocket | None = None

    async def __aenter__(self) -> Self:
        """Listen for notifications; raises StartError."""
        path = self._directory / "notify"
        self._notify_socket = self._exit_stack.enter_context(
            NotifySocket.open(path, self._notified)
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop all units, in parallel."""
        with self._exit_stack:
            stopped = [unit.want_stop() for unit in self._units.values()]
            for future in stopped:
                try:
                    await future
                except UnitStuck as err:
                    logger.warning("%s: left behind: %s", err.instance, err)
            for unit in self._units.values():
                unit.close()

    async def start(self, instance: InstanceName) -> None:
        """Start the unit and return once it is active; see UnitControl."""
        await self._unit(instance).want_start()

    async def stop(self, instance: InstanceName) -> None:
        """Stop the unit and return once no process of it is left; see UnitControl."""
        if instance in self._units:
            await self._units[instance].want_stop()

    async def restart(self, instance: InstanceName) -> None:
        """Stop, then start."""
        await self.stop(instance)
        await self.start(instance)

    async def reset_failed(self, instance: InstanceName) -> None:
        """Forget a failure and its backoff."""
        if instance in self._units:
            self._units[instance].take(ResetWanted())

    def statuses(self) -> Mapping[InstanceName, UnitStatus]:
        """Return every unit that was ever started."""
        return {name: unit.status() for name, unit in self._units.items()}

    def subscribe(self, on_change: Callable[[UnitStatus], None]) -> None:
        """Call `on_change` after every change of any unit's status."""
        self._subscribers.append(on_change)

    def _unit(self, instance: InstanceName) -> SupervisedUnit:
        if instance not in self._units:
            self._units[instance] = SupervisedUnit(
                instance=instance,
                limits=self._limits,
                spawn=lambda on_exit: self._spawn(instance, on_exit),
                hear=self._hear,
                changed=self._changed,
            )
        return self._units[instance]

    def _spawn(self, instance: InstanceName, on_exit: Callable[[int], None]) -> ChildProcess:
        """Start an instance's main process; raises OSError."""
        directory = self._directory / instance
        directory.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key not in _OWN_VARIABLES}
        environment |= {
            "NOTIFY_SOCKET": str(self._directory / "notify"),
            # No WATCHDOG_PID: the pid is known only after the start.
            "WATCHDOG_USEC": str(int(self._limits.watchdog_s * 1_000_000)),
            "RUNTIME_DIRECTORY": str(directory),
        }

        def exited(status: int) -> None:
            self._hear()  # what it said last (why it ends) counts before its end
            on_exit(status)

        return ChildProcess.spawn(
            self._argv_of(instance),
            environment=environment,
            death_signal=signal.SIGTERM,
            on_exit=exited,
            new_session=True,
        )

    def _hear(self) -> None:
        """Take in what has been said so far."""
        if self._notify_socket is not None:
            self._notify_socket.drain()

    def _notified(self, pid: int, assignments: Mapping[str, str]) -> None:
        """Hear main processes only, as NotifyAccess=main does."""
        for unit in self._units.values():
            if unit.main_pid == pid:
                unit.take(read_notification(assignments))
                return
        logger.debug("notification from pid %d, which is no main process: ignored", pid)

    def _changed(self, status: UnitStatus) -> None:
        for on_change in self._subscribers:
            on_change(status)


def read_notification(assignments: Mapping[str, str]) -> Notified:
    """Return what one datagram of sd_notify(3) means to a unit; the rest of it is ignored."""
    extend_usec = assignments.get("EXTEND_TIMEOUT_USEC", "")
    return Notified(
        status_text=assignments.get("STATUS"),
        ready=assignments.get("READY") == "1",
        stopping=assignments.get("STOPPING") == "1",
        alive=assignments.get("WATCHDOG") == "1",
        trigger=assignments.get("WATCHDOG") == "trigger",
        extend_s=int(extend_usec) / 1_000_000 if extend_usec.isdecimal() else None,
    )
