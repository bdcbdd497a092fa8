"""Programs started by a test: their output, how they end, and which processes they leave behind.

Every program gets a mark in its environment, which all its descendants inherit; so they are found
even when their parent is gone or they have moved to another session.
"""

import asyncio
import os
import re
import secrets
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.poll import eventually

MARK = "ROLEMESH_TEST_PROGRAM"


class ProgramEnded(AssertionError):
    """A program ended that was expected to run on; the text has the end of its output."""


class Program:
    """A running program; `log` collects its stdout and stderr."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, mark: str) -> None:
        self._process = process
        self._mark = mark
        self.log = log

    @property
    def pid(self) -> int:
        """The process started first, also after its end."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status (negative: the signal that ended it), None while it runs."""
        return self._process.poll()

    def lines(self) -> list[str]:
        """Return what it has written so far."""
        return self.log.read_text(errors="replace").splitlines()

    def processes(self) -> list[int]:
        """Return the pids of all its living processes: itself and its descendants."""
        return processes_marked(MARK, self._mark)

    def send(self, signal_number: signal.Signals) -> None:
        """Send a signal to the process started first, unless that has ended."""
        self._process.send_signal(signal_number)

    async def line(self, pattern: str, *, deadline_s: float = 20) -> re.Match[str]:
        """Return the first line that matches the regular expression, as soon as it is there.

        Raises ProgramEnded if the program ends without it.
        """

        def find() -> re.Match[str] | None:
            ended = self.status is not None  # asked first: what it wrote last is read after that
            found = next(filter(None, (re.search(pattern, line) for line in self.lines())), None)
            if ended and not found:
                raise ProgramEnded(self._story(f"ended without a line like {pattern!r}"))
            return found

        return await eventually(
            find, what=self._story(f"a line like {pattern!r}"), deadline_s=deadline_s
        )

    async def end(self, *, deadline_s: float = 20) -> int:
        """Wait for its end and return its exit status."""
        what = self._story("ended")
        await eventually(lambda: self.status is not None, what=what, deadline_s=deadline_s)
        return self._process.wait()

    async def stop(self, *, grace_s: float = 20) -> int:
        """Ask it to end (SIGTERM) and return its exit status; SIGKILL when it takes too long."""
        try:
            self.send(signal.SIGTERM)
            return await self.end(deadline_s=grace_s)
        finally:
            self._process.kill()
            self._process.wait()

    async def assert_nothing_left(self, *, deadline_s: float = 5) -> None:
        """Fail if one of its processes outlives it; those that do are killed all the same."""
        try:
            what = f"all processes of {self._process.args!r} gone"
            await eventually(lambda: not self.processes(), what=what, deadline_s=deadline_s)
        finally:
            kill(self.processes())

    def _story(self, what: str) -> str:
        tail = "\n".join(self.lines()[-20:])
        return f"{what}: {self._process.args!r} (status {self.status}), which wrote:\n{tail}\n"


def start_program(
    command: Sequence[str | Path],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> Program:
    """Start a program in a session of its own, `environment` added to the test's own.

    Whoever calls this stops it; `running` does both.
    """
    mark = secrets.token_hex(8)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {}), MARK: mark},
            cwd=folder,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    return Program(process, log, mark)


@asynccontextmanager
async def running(
    command: Sequence[str | Path],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> AsyncIterator[Program]:
    """Run a program for the length of the block; then stop it, and fail if it left processes."""
    program = start_program(command, log=log, environment=environment, folder=folder)
    try:
        yield program
    finally:
        try:
            await program.stop()
        finally:
            await program.assert_nothing_left()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What became of a program that ran to its end."""

    status: int
    stdout: str
    stderr: str


async def run_to_end(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    deadline_s: float = 20,
    pass_fds: Sequence[int] = (),
) -> Finished:
    """Run a short program to its end, the event loop going on."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        pass_fds=pass_fds,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(deadline_s):
            stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Finished(
        status=await process.wait(),
        stdout=stdout.decode(errors="replace"),
        stderr=stderr.decode(errors="replace"),
    )


def processes_marked(name: str, value: str) -> list[int]:
    """Return the pids of the living processes that have NAME=VALUE in their environment.

    A zombie has no environment any more: it does not count as living.
    """
    entry = f"{name}={value}".encode()
    return [pid for pid in _all_pids() if entry in environment_of(pid)]


def environment_of(pid: int) -> list[bytes]:
    """Return the environment a process was started with; empty if it ended or is another user's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def is_running(pid: int) -> bool:
    """Return whether a process is there and not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


def kill(pids: Sequence[int]) -> None:
    """Kill processes; those that ended meanwhile are fine."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def is_free(port: int) -> bool:
    """Tell whether nobody listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _all_pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
