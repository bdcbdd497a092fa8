"""The llama-server process: its start, its log, its end.

Leaving `open_server` stops it, however that happens; the kernel kills it when this process dies.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import BinaryIO, Final

from rolemesh.errors import NodeError
from rolemesh.llama.command import ServerCommand
from rolemesh.llama.log_tail import LogTail
from rolemesh.runtime import tied_exec
from rolemesh.runtime.child_process import ChildProcess

# llama-server hangs on the first SIGTERM while a client streams and ends on the second. What does
# not help within the time after it is followed by the next.
STOP_SEQUENCE: Final = ((signal.SIGTERM, 3.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))

# The socket is for the owner and the group: the agent is in it.
_UMASK: Final = 0o007
_LOG_CHUNK_BYTES: Final = 64 * 1024
# A pipe holds one such chunk; bounded in case a process left behind goes on writing.
_LAST_CHUNKS: Final = 4


class ServerEnded(NodeError):
    """The llama-server ended by itself; `status` as subprocess has it (negative: a signal)."""

    def __init__(self, status: int, explanation: str) -> None:
        super().__init__(
            f"llama-server {describe_status(status)}: {explanation or 'it said nothing'}"
        )
        self.status = status

    @property
    def could_not_run(self) -> bool:
        """Whether the program itself is at fault: not executable, or a library is missing."""
        return self.status in {tied_exec.CANNOT_EXECUTE, tied_exec.NOT_FOUND}


def describe_status(status: int) -> str:
    """Say how a process ended."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


class LlamaServer:
    """A llama-server from its start to its end; made by `open_server`."""

    def __init__(self, child: ChildProcess, log: LogTail) -> None:
        self._child = child
        self.log = log

    @property
    def pid(self) -> int:
        """The pid of the llama-server."""
        return self._child.pid

    async def pass_time(self, seconds: float) -> None:
        """Wait `seconds`; raises ServerEnded as soon as the llama-server has ended."""
        if await self._child.ended_within(seconds):
            raise ServerEnded(await self._child.wait(), self.log.explanation())

    async def stop(self, told: Callable[[str], None]) -> None:
        """End the llama-server; returns once it is gone. `told` hears when that is impossible."""
        for number, patience_s in STOP_SEQUENCE:
            self._child.send_signal(number)
            # One that somebody has stopped (SIGSTOP) gets to see the signal only when it goes on.
            self._child.send_signal(signal.SIGCONT)
            if await self._child.ended_within(patience_s):
                return
        told(f"llama-server (pid {self.pid}) cannot be killed: it is stuck in the kernel")
        await self._child.wait()


@contextlib.asynccontextmanager
async def open_server(
    command: ServerCommand,
    *,
    lock_fd: int,
    sink: BinaryIO,
    line_prefix: str,
    told: Callable[[str], None],
) -> AsyncIterator[LlamaServer]:
    """Start a llama-server that inherits `lock_fd`.

    Its log goes line by line to `sink`, each line after `line_prefix`. Raises ServerEnded when the system has no room for a process.
    """
    log = LogTail(line_prefix)
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(write_fd, True)
    reader = _LogReader(read_fd, log, sink)
    try:
        child = ChildProcess.spawn(
            command.argv,
            environment=command.environment,
            death_signal=signal.SIGKILL,
            on_exit=lambda _status: reader.close(),
            output_fd=write_fd,
            umask=_UMASK,
            keep_fds=(lock_fd,),
        )
    except OSError as err:
        reader.close()
        raise ServerEnded(tied_exec.CANNOT_EXECUTE, f"cannot be started: {err.strerror}") from err
    finally:
        os.close(write_fd)
    server = LlamaServer(child, log)
    try:
        yield server
    finally:
        await server.stop(told)


class _LogReader:
    """Passes a pipe's lines on to the sink and keeps the last ones."""

    def __init__(self, fd: int, log: LogTail, sink: BinaryIO) -> None:
        self._fd = fd
        self._log = log
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read)

    def close(self) -> None:
        """Take what is in the pipe and close it; something else may still hold its other end."""
        for _ in range(_LAST_CHUNKS):
            if not self._read():
                break
        self._end()

    def _read(self) -> bool:
        """Take one chunk; tell whether there may be more."""
        try:
            chunk = os.read(self._fd, _LOG_CHUNK_BYTES) if self._fd >= 0 else b""
        except BlockingIOError:
            return False
        self._pass_on(self._log.feed(chunk))
        if not chunk:
            self._end()
        return bool(chunk)

    def _end(self) -> None:
        self._pass_on(self._log.end())
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _pass_on(self, lines: bytes) -> None:
        # A log that nobody takes any more must not end the serving.
        with contextlib.suppress(OSError):
            self._sink.write(lines)
            self._sink.flush()
