"""A child process that does not outlive this one, watched without threads or SIGCHLD.

Who starts one owns it: it must wait for its end before the event loop closes.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from rolemesh.runtime.tied_process import start_tied


class ChildProcess:
    """A running (or ended) child; made by `spawn`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._ended = asyncio.Event()

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        death_signal: signal.Signals,
        on_exit: Callable[[int], None] | None = None,
        output_fd: int | None = None,
        umask: int = -1,
        keep_fds: Sequence[int] = (),
        new_session: bool = False,
    ) -> Self:
        """Start `argv` (argv[0] is a path); raises OSError when the system has no room for it.

        The child gets `death_signal` when the calling thread ends, so call this in the main
        thread. `on_exit` gets the status as subprocess has it (negative: a signal). `output_fd` is
        the child's stdout and stderr. With `new_session` it leads a process group of its own.
        That argv[0] cannot be executed shows as exit status 126 or 127.
        """
        process = start_tied(
            argv,
            environment=environment,
            death_signal=death_signal,
            output_fd=output_fd,
            umask=umask,
            keep_fds=keep_fds,
            new_session=new_session,
        )
        child = cls(process)
        child._watch(on_exit)
        return child

    @classmethod
    def adopt(cls, process: subprocess.Popen[bytes], on_exit: Callable[[int], None]) -> Self:
        """Watch over what `start_tied` has started without a session of its own."""
        child = cls(process)
        child._watch(on_exit)
        return child

    @property
    def pid(self) -> int:
        """The child's pid, also after its end."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status (negative: the signal it died of), None while it runs."""
        return self._process.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the child; no effect once it has ended."""
        self._process.send_signal(number)

    async def wait(self) -> int:
        """Return the exit status once the child has ended."""
        await self._ended.wait()
        return self._process.wait()

    async def ended_within(self, seconds: float) -> bool:
        """Wait up to `seconds` for the child's end; tell whether it has ended."""
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        except TimeoutError:
            return self._ended.is_set()
        return True

    def _watch(self, on_exit: Callable[[int], None] | None) -> None:
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(self.pid)

        def exited() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            status = self._process.wait()
            self._ended.set()
            if on_exit is not None:
                on_exit(status)

        loop.add_reader(pidfd, exited)
