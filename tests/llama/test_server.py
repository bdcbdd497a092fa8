"""The llama-server process: log, end, and how it is stopped."""

import io
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from rolemesh.llama import server as server_module
from rolemesh.llama.command import ServerCommand
from rolemesh.llama.server import LlamaServer, open_server
from rolemesh.llama.server_process import ServerEnded, describe_status, start_server
from tests.lab.poll import eventually
from tests.lab.processes import is_running


def command(code: str) -> ServerCommand:
    return ServerCommand(argv=(sys.executable, "-u", "-c", code), environment=dict(os.environ))


@pytest.fixture
def lock_fd(tmp_path: Path) -> int:
    return os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)


def ignore(_text: str) -> None:
    return None


async def end_of(code: str, lock_fd: int, sink: io.BytesIO) -> ServerEnded:
    started = start_server(command(code), lock_fd=lock_fd)
    with pytest.raises(ServerEnded) as caught:
        async with open_server(started, sink=sink, line_prefix="", told=ignore) as server:
            await server.pass_time(20)
    os.close(lock_fd)
    return caught.value


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        (
            "print('0.00.001.000 E error loading model: too odd'); raise SystemExit(1)",
            1,
            "llama-server exited with status 1: error loading model: too odd",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            -9,
            "llama-server was killed by SIGKILL: it was ended from outside",
        ),
    ],
)
async def test_an_end_is_explained(lock_fd: int, code: str, status: int, text: str) -> None:
    error = await end_of(code, lock_fd, io.BytesIO())
    assert (error.status, str(error), error.could_not_run) == (status, text, False)


async def test_the_log_passes_through_to_its_last_byte(lock_fd: int) -> None:
    sink = io.BytesIO()
    code = (
        "import sys; print('one'); print('two', file=sys.stderr); sys.stdout.write('x' * 300_000)"
    )
    await end_of(code, lock_fd, sink)
    lines = sink.getvalue()
    assert lines.startswith(b"one\ntwo\nxxx")
    assert lines.count(b"x") == 300_000


async def test_a_line_of_the_log_ends_the_wait_for_it(lock_fd: int) -> None:
    code = r"import os, time; os.write(1, b'loaded\n'); time.sleep(60)"
    started = start_server(command(code), lock_fd=lock_fd)
    os.close(lock_fd)
    async with open_server(started, sink=io.BytesIO(), line_prefix="", told=ignore) as server:
        assert await server.hears_within(30)
        assert server.log.lines() == ("loaded",)
        assert not await server.hears_within(0.01)
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerEnded):
            await server.pass_time(30)


async def test_a_log_that_nobody_takes_ends_nothing(lock_fd: int) -> None:
    class Closed(io.BytesIO):
        def write(self, _content: object) -> int:
            raise BrokenPipeError

    error = await end_of("print('hello'); raise SystemExit(4)", lock_fd, Closed())
    assert error.status == 4


async def test_a_program_that_cannot_be_executed_could_not_run(
    lock_fd: int, tmp_path: Path
) -> None:
    program = tmp_path / "llama-server"
    program.write_bytes(b"\0\1\2")
    program.chmod(0o755)
    broken = ServerCommand(argv=(str(program),), environment={})
    started = start_server(broken, lock_fd=lock_fd)
    with pytest.raises(ServerEnded) as caught:
        async with open_server(started, sink=io.BytesIO(), line_prefix="", told=ignore) as server:
            await server.pass_time(20)
    os.close(lock_fd)
    assert caught.value.could_not_run
    assert str(caught.value) == (
        f"llama-server exited with status 126: cannot execute {program}: Exec format error"
    )


async def stop_time(code: str, lock_fd: int) -> tuple[float, LlamaServer]:
    """Return how long it took to stop a program that says `up` first."""
    begun = 0.0
    started = start_server(command(code), lock_fd=lock_fd)
    async with open_server(started, sink=io.BytesIO(), line_prefix="", told=ignore) as server:

        async def is_up() -> bool:
            await server.pass_time(0)  # raises if it has ended
            return "up" in server.log.lines()

        await eventually(is_up, what="the program is up")
        begun = time.monotonic()
    os.close(lock_fd)
    return time.monotonic() - begun, server


async def test_a_willing_program_stops_at_once(lock_fd: int) -> None:
    seconds, server = await stop_time("import time; print('up'); time.sleep(60)", lock_fd)
    assert seconds < 2
    assert not is_running(server.pid)


ENDS_ON_SECOND = """
import signal, time, os
seen = []
def term(*_):
    if seen: os._exit(1)
    seen.append(1)
signal.signal(signal.SIGTERM, term)
print('up')
while True: time.sleep(60)
"""
NEVER_ENDS = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('up')
while True: time.sleep(60)
"""


async def test_a_second_sigterm_follows_after_three_seconds(lock_fd: int) -> None:
    seconds, _ = await stop_time(ENDS_ON_SECOND, lock_fd)
    assert 2.9 < seconds < 5


async def test_what_ignores_both_is_killed(lock_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = ((signal.SIGTERM, 0.1), (signal.SIGTERM, 0.1), (signal.SIGKILL, 5.0))
    monkeypatch.setattr(server_module, "STOP_SEQUENCE", quick)
    seconds, server = await stop_time(NEVER_ENDS, lock_fd)
    assert seconds > 0.2
    assert not is_running(server.pid)


async def test_a_stopped_program_goes_on_to_end(lock_fd: int) -> None:
    code = "import os, signal; print('up'); os.kill(os.getpid(), signal.SIGSTOP)"
    seconds, _ = await stop_time(code, lock_fd)
    assert seconds < 2


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "exited with status 0"),
        (-15, "was killed by SIGTERM"),
        (-40, "was killed by signal 40"),
    ],
)
def test_a_status_is_words(status: int, text: str) -> None:
    assert describe_status(status) == text
