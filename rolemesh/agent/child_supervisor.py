"""Runs the units of instances where systemd is not PID 1: child processes, systemd's contract.

The rules are in `child_unit`; here are the processes, the notify socket and the timers. Children
get SIGTERM when this process dies, and each leads a process group that is killed with its end.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rolemesh.agent import child_unit
from rolemesh.agent.child_unit import ChildUnit, Limits, Notified, Phase, StartOutcome
from rolemesh.agent.notify_socket import NotifySocket
from rolemesh.agent.unit_control import ActiveState, UnitStatus
from rolemesh.errors import UnitFailed
from rolemesh.names import InstanceName
from rolemesh.runtime.child_process import ChildProcess

logger = logging.getLogger(__name__)

DEFAULT_LIMITS: Final = Limits()

_ACTIVE_STATES: Final[Mapping[Phase, ActiveState]] = {
    Phase.INACTIVE: ActiveState.INACTIVE,
    Phase.STARTING: ActiveState.ACTIVATING,
    Phase.RUNNING: ActiveState.ACTIVE,
    Phase.STOPPING: ActiveState.DEACTIVATING,
    Phase.FAILING: ActiveState.DEACTIVATING,
    Phase.RESTARTING: ActiveState.ACTIVATING,
    Phase.FAILED: ActiveState.FAILED,
}
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
        self._units: dict[InstanceName, _Unit] = {}
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
                await future

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
            self._units[instance].take(child_unit.ResetWanted())

    def statuses(self) -> Mapping[InstanceName, UnitStatus]:
        """Return every unit that was ever started."""
        return {name: unit.status() for name, unit in self._units.items()}

    def subscribe(self, on_change: Callable[[UnitStatus], None]) -> None:
        """Call `on_change` after every change of any unit's status."""
        self._subscribers.append(on_change)

    def _unit(self, instance: InstanceName) -> "_Unit":
        if instance not in self._units:
            self._units[instance] = _Unit(
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


@dataclass(frozen=True, slots=True)
class _Waiter:
    """Somebody who waits for what becomes of one attempt."""

    attempt: int
    future: asyncio.Future[None]


class _Unit:
    """One unit: its state, its process, its timer and those who wait for it."""

    def __init__(
        self,
        *,
        instance: InstanceName,
        limits: Limits,
        spawn: Callable[[Callable[[int], None]], ChildProcess],
        hear: Callable[[], None],
        changed: Callable[[UnitStatus], None],
    ) -> None:
        self._instance = instance
        self._limits = limits
        self._spawn = spawn
        self._hear = hear
        self._changed = changed
        self._state = ChildUnit()
        self._child: ChildProcess | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._start_waiters: list[_Waiter] = []
        self._stop_waiters: list[_Waiter] = []

    @property
    def main_pid(self) -> int | None:
        """The pid of the main process, None while there is none."""
        return self._child.pid if self._child else None

    def status(self) -> UnitStatus:
        """Return the unit as systemd would show it."""
        return UnitStatus(
            instance=self._instance,
            active=_ACTIVE_STATES[self._state.phase],
            main_pid=self.main_pid,
            status_text=self._state.status_text,
            result=self._state.result,
            restarts=self._state.restarts,
        )

    def want_start(self) -> asyncio.Future[None]:
        """Start the unit; the future ends with that start."""
        self.take(child_unit.StartWanted())
        return self._wait(self._start_waiters, child_unit.awaited_attempt(self._state))

    def want_stop(self) -> asyncio.Future[None]:
        """Stop the unit; the future ends with its process."""
        self.take(child_unit.StopWanted())
        return self._wait(self._stop_waiters, self._state.attempt)

    def _wait(self, waiters: list[_Waiter], attempt: int) -> asyncio.Future[None]:
        waiter = _Waiter(attempt, asyncio.get_running_loop().create_future())
        waiters.append(waiter)
        self._settle_waiters(self._state)
        return waiter.future

    def take(self, event: child_unit.Event) -> None:
        """Let `event` happen to the unit."""
        before, status_before = self._state, self.status()
        now = asyncio.get_running_loop().time()
        self._state, actions = child_unit.step(before, event, now=now, limits=self._limits)
        if isinstance(event, child_unit.Exited):
            self._child = None
        for action in actions:
            self._perform(action)
        self._arm_timer()
        if self._state.phase is not before.phase:
            self._log_phase()
        self._settle_waiters(before)
        if self.status() != status_before:
            self._changed(self.status())

    def _perform(self, action: child_unit.Action) -> None:
        match action:
            case child_unit.Signal(number=number):
                if self._child is not None:
                    self._child.send_signal(number)
            case child_unit.Spawn():
                try:
                    self._child = self._spawn(self._exited)
                except OSError as err:
                    self.take(child_unit.SpawnFailed(reason=f"cannot be started: {err}"))

    def _exited(self, status: int) -> None:
        if self._child is not None:
            self._child.kill_group()
        self.take(child_unit.Exited(status=status))

    def _arm_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._state.due < inf:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._state.due, self._time_passed)

    def _time_passed(self) -> None:
        # After a standstill of our own, what was said in time lies here unread.
        self._hear()
        self.take(child_unit.DeadlinePassed())

    def _settle_waiters(self, before: ChildUnit) -> None:
        state = self._state
        for waiter in tuple(self._start_waiters):
            outcome = child_unit.start_outcome(state, waiter.attempt)
            if outcome is not StartOutcome.PENDING:
                self._start_waiters.remove(waiter)
                _settle(waiter.future, self._start_error(outcome, before))
        for waiter in tuple(self._stop_waiters):
            if state.attempt != waiter.attempt or not child_unit.has_process(state):
                self._stop_waiters.remove(waiter)
                _settle(waiter.future, None)

    def _start_error(self, outcome: StartOutcome, before: ChildUnit) -> UnitFailed | None:
        if outcome is StartOutcome.DONE:
            return None
        # When the next attempt has begun already, the failed one is the state before.
        failed = before if self._state.result == child_unit.SUCCESS else self._state
        canceled = outcome is StartOutcome.CANCELED
        return UnitFailed(
            self._instance,
            result=child_unit.CANCELED if canceled else failed.result,
            status_text="stopped before it was ready" if canceled else failed.status_text,
        )

    def _log_phase(self) -> None:
        state = self._state
        match state.phase:
            case Phase.FAILING:
                logger.warning("%s: %s; killing it", self._instance, state.result)
            case Phase.RESTARTING:
                pause_s = state.deadline - asyncio.get_running_loop().time()
                logger.warning(
                    "%s failed (%s): %s; restart in %.1f s",
                    *(self._instance, state.result, state.status_text, pause_s),
                )
            case Phase.FAILED:
                logger.error("%s failed (%s): %s", self._instance, state.result, state.status_text)
            case Phase.INACTIVE | Phase.STARTING | Phase.RUNNING | Phase.STOPPING:
                logger.info("%s is %s", self._instance, state.phase.value)


def _settle(future: asyncio.Future[None], error: UnitFailed | None) -> None:
    if future.done():
        return  # whoever waited was cancelled
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
