"""Starts another version of this daemon's program, and waits until that one has taken over.

Until it accepts, nothing has changed: whatever goes wrong, this process serves on.
"""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import rolemesh
from rolemesh.runtime.fd_store import PassedSocket
from rolemesh.runtime.handover import (
    MAX_TEXT,
    START_S,
    FileIdentity,
    not_taken_over,
    refusal_error,
    successor_command,
    successor_environment,
    why_it_ended,
)
from rolemesh.runtime.message_channel import Message, MessageChannel
from rolemesh.runtime.predecessor import Told

logger = logging.getLogger(__name__)

# The manager only learns of the end of a main process that is its own child, so the new one is
# orphaned before it begins. Not a file: those on disk are the new program's, which may be broken.
_ORPHAN: Final = """
import os, sys
pid = os.fork()
if pid:
    os.write(1, b"%d" % pid)
    os._exit(0)
os.dup2(2, 1)
for name in ("SYSTEMD_EXEC_PID", "WATCHDOG_PID"):
    if name in os.environ:
        os.environ[name] = str(os.getpid())
os.execv(sys.argv[1], sys.argv[1:])
"""

MAX_OUTPUT_BYTES: Final = 64 * 1024


def program_identity() -> FileIdentity | None:
    """Return which program is on disk now: every package replaces this file with the others."""
    try:
        stat = Path(rolemesh.__file__).stat()
    except OSError:
        return None
    return FileIdentity(
        device=stat.st_dev,
        inode=stat.st_ino,
        size=stat.st_size,
        mtime=stat.st_mtime_ns,
        ctime=stat.st_ctime_ns,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estate:
    """What a daemon hands over.

    `locks` are the descriptors of locked files. `release` has it write its state for the last time,
    as the new process is about to read it, and returns what that is told of the requests that end
    here; `keep` takes that back. `follow` has those requests follow another configuration; it raises
    ConfigError.
    """

    sockets: Callable[[], Sequence[PassedSocket]]
    locks: Callable[[], Mapping[str, int]] = dict
    release: Callable[[], Awaitable[Told]]
    keep: Callable[[], Awaitable[None]]
    follow: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Successor:
    """A process that has taken over."""

    pid: int
    version: str
    channel: MessageChannel


class SuccessorStart:
    """The start of a successor, once; `environment` is this process's own at its start."""

    def __init__(self, environment: Mapping[str, str], estate: Estate) -> None:
        self._environment = environment
        self._estate = estate
        self._limit = asyncio.timeout(START_S)
        self._is_given_up = False
        self._channel, self._theirs = MessageChannel.pair()
        self._output = os.memfd_create("start-output")

    def tell(self, told: Told) -> None:
        """Tell the new process what is under way here now."""
        self._channel.send("told", told=told)

    def give_up(self) -> None:
        """Have the start fail now, as this daemon is to stop."""
        if self._limit.expired():
            return
        self._is_given_up = True
        self._limit.reschedule(asyncio.get_running_loop().time())

    async def run(self) -> Successor:
        """Start the program that is on disk now, and return once it accepts.

        Raises ConfigError when it refuses the configuration, else StartError.
        """
        try:
            async with self._limit:
                return await self._run()
        except TimeoutError as err:
            why = "it is to stop" if self._is_given_up else f"it took longer than {START_S:g} s"
            raise not_taken_over(f"{why} {self._written()[-MAX_TEXT:]}".rstrip()) from err
        finally:
            self._theirs.close()
            os.close(self._output)

    async def _run(self) -> Successor:
        sockets, locks = self._estate.sockets(), self._estate.locks()
        fds = [1, 2, *(each.socket.fileno() for each in sockets), *locks.values()]
        names = [each.name for each in sockets]
        self._channel.send("inherit", fds, names=names, locks=list(locks))
        pid = await asyncio.to_thread(self._start)
        with _killed_unless_it_serves(pid):
            try:
                self._theirs.close()  # else nobody would learn of the new one's end
                await self._expect("prepared")
                self._channel.send("proceed", told=await self._estate.release())
                accepting = await self._expect("accepting")
            except BaseException:
                self._channel.close()
                await self._estate.keep()
                raise
        version = str(accepting.fields.get("version", ""))
        return Successor(pid=pid, version=version, channel=self._channel)

    def _start(self) -> int:
        """Start the new process as an orphan, and return its pid; raises StartError."""
        is_program = Path(sys.argv[0]).is_file() and os.access(sys.argv[0], os.X_OK)
        command = successor_command(sys.argv, sys.orig_argv, sys.executable, is_program=is_program)
        try:
            done = subprocess.run(  # noqa: S603 - it is this program
                [sys.executable, "-I", "-S", "-c", _ORPHAN, *command],
                env=successor_environment(self._environment, self._theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._output,
                pass_fds=(self._theirs.fileno(),),
                check=True,
            )
            return int(done.stdout)
        except (OSError, ValueError, subprocess.SubprocessError) as err:
            raise not_taken_over(self._why_it_ended() if self._written() else str(err)) from err

    async def _expect(self, say: str) -> Message:
        message = await self._channel.receive()
        if message is None:
            if self._written():
                logger.error("the new program wrote:\n%s", self._written())
            raise not_taken_over(self._why_it_ended())
        if message.say != say:
            raise refusal_error(message.fields)
        return message

    def _why_it_ended(self) -> str:
        return why_it_ended(self._written())

    def _written(self) -> str:
        """Return what the new process wrote before it had the output of this one."""
        return os.pread(self._output, MAX_OUTPUT_BYTES, 0).decode(errors="replace")


@contextmanager
def _killed_unless_it_serves(pid: int) -> Iterator[None]:
    """Kill a process if the block fails; it may have ended, and another may have its pid by then."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        yield
        return
    try:
        yield
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        raise
    finally:
        os.close(pidfd)
