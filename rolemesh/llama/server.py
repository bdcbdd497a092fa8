"""A running llama-server: its log, and its end.

Leaving `open_server` stops it, however that happens.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import BinaryIO, Final

from rolemesh.llama.explanation import explain_end
from rolemesh.llama.log_tail import LogTail
from rolemesh.llama.oom_kills import OomKills
from rolemesh.llama.server_process import ServerEnded, StartedServer
from rolemesh.runtime.child_process import ChildProcess

# llama-server hangs on the first SIGTERM while a client streams and ends on the second. What does
# not help within the time after it is followed by the next.
STOP_SEQUENCE: Final = ((signal.SIGTERM, 3.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))

_LOG_CHUNK_BYTES: Final = 64 * 1024
# A pipe holds one such chunk; bounded in case a process left behind goes on writing.
_LAST_CHUNKS: Final = 4


class LlamaServer:
    """A llama-server from its start to its end; made by `open_server`."""

    def __init__(self, child: ChildProcess, log: LogTail, heard: asyncio.Event) -> None:
        self._child = child
        self._heard = heard
        self.log = log
        self._oom_kills = OomKills()
        self._kills = (self._oom_kills.count(),) * 2

    @property
    def pid(self) -> int:
        """The pid of the llama-server."""
        return self._child.pid

    async def hears_within(self, seconds: float) -> bool:
        """Wait `seconds`, or less when it writes to its log; tell whether it has since last asked.

        Raises ServerEnded as soon as it has ended.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._heard.wait()
        heard = self._heard.is_set()
        self._heard.clear()
        await self.pass_time(0)
        return heard

    async def pass_time(self, seconds: float) -> None:
        """Wait `seconds`; raises ServerEnded as soon as the llama-server has ended."""
        # Of two times back: it may have been killed between two calls.
        self._kills = (self._kills[1], self._oom_kills.count())
        if await self._child.ended_within(seconds):
            raise self._end(await self._child.wait())

    def _end(self, status: int) -> ServerEnded:
        oom_killed = self._oom_kills.count() > self._kills[0]
        return ServerEnded(status, explain_end(status, self.log.lines(), oom_killed=oom_killed))

    async def stop(self, told: Callable[[str], None]) -> None:
        """End the llama-server; returns once it is gone.

        `told` hears when that is impossible, and when somebody else had killed it: systemd has us
        stop when that was the kernel.
        """
        for number, patience_s in STOP_SEQUENCE:
            self._child.send_signal(number)
            # One that somebody has stopped (SIGSTOP) gets to see the signal only when it goes on.
            self._child.send_signal(signal.SIGCONT)
            if await self._child.ended_within(patience_s):
                status = await self._child.wait()
                if status == -signal.SIGKILL != -number:
                    told(str(self._end(status)))
                return
        told(f"llama-server (pid {self.pid}) cannot be killed: it is stuck in the kernel")
        await self._child.wait()


@contextlib.asynccontextmanager
async def open_server(
    started: StartedServer, *, sink: BinaryIO, line_prefix: str, told: Callable[[str], None]
) -> AsyncIterator[LlamaServer]:
    """Look after a llama-server: its log goes line by line to `sink`, each after `line_prefix`."""
    log, heard = LogTail(line_prefix), asyncio.Event()
    reader = _LogReader(started.log_fd, log, sink, heard)
    child = ChildProcess.adopt(started.process, lambda _status: reader.close())
    server = LlamaServer(child, log, heard)
    try:
        yield server
    finally:
        await server.stop(told)


class _LogReader:
    """Passes a pipe's lines on to the sink and keeps the last ones; sets `heard` with each."""

    def __init__(self, fd: int, log: LogTail, sink: BinaryIO, heard: asyncio.Event) -> None:
        self._heard = heard
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
        self._heard.set()
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
