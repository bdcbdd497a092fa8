"""Plays systemd for one service: starts, restarts and stops it, and keeps its descriptors."""

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.fakes import with_fds
from tests.lab.notify import NotifySocket, notify_socket
from tests.lab.poll import eventually
from tests.lab.processes import Program, is_running, start_program


class Service:
    """A service; `passed` are descriptors that a .socket unit would pass."""

    def __init__(self, folder: Path, command: Sequence[str | Path], manager: NotifySocket) -> None:
        self.manager = manager
        self.passed: Mapping[str, int] = {}
        self.program: Program | None = None
        self._folder = folder
        self._command = command
        self._starts = itertools.count()

    async def start(self) -> Program:
        """Start it and wait until it is ready."""
        stored = [(name, fd) for name, fds in self.manager.stored.items() for fd in fds]
        named = [*self.passed.items(), *stored]
        self.program = start_program(
            [
                *(sys.executable, with_fds.__file__),
                *(f"{name}={fd}" for name, fd in named),
                *("--", *self._command),
            ],
            log=self._folder / f"service-{next(self._starts)}.log",
            environment=self.manager.environment,
            pass_fds=[fd for _, fd in named],
        )
        await eventually(self._is_ready, what="the service is ready", deadline_s=30)
        return self.program

    def _is_ready(self) -> bool:
        assert self.program is not None
        ended, pid = self.program.status, self.program.pid
        assert ended is None, (ended, self.program.lines())
        return any(each.pid == pid and "READY" in each.fields for each in self.manager.received)

    @property
    def main_pid(self) -> int:
        """The process that the manager takes for the service."""
        assert self.program is not None
        handed_over = [each for each in self.manager.received if "MAINPID" in each.fields]
        main_pid = self.program.pid
        for each in handed_over:
            if each.pid == main_pid:  # nobody else is listened to
                main_pid = int(each.fields["MAINPID"])
        return main_pid

    async def restart(self) -> None:
        """What `systemctl restart` does."""
        await self.end()
        await self.start()

    async def kill(self) -> None:
        """What a crash and Restart=on-failure come to."""
        assert self.program is not None
        self.program.send(signal.SIGKILL)
        await self.program.end()
        await self.start()

    async def end(self) -> None:
        """Stop the program, and keep its descriptors."""
        if self.program is not None:
            main_pid, program, self.program = self.main_pid, self.program, None
            if main_pid == program.pid:
                await program.stop()
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(main_pid, signal.SIGTERM)
                await eventually(lambda: not is_running(main_pid), what="ended", deadline_s=20)
                await program.end()
            await program.assert_nothing_left()

    async def stop(self) -> None:
        """What `systemctl stop` does."""
        await self.end()
        self.manager.read()
        self.manager.drop_stored()


@asynccontextmanager
async def service(folder: Path, command: Sequence[str | Path]) -> AsyncIterator[Service]:
    """Run a service for the length of the block; `folder` must have a short path."""
    with notify_socket(folder) as manager:
        made = Service(folder, command, manager)
        try:
            yield made
        finally:
            await made.stop()
