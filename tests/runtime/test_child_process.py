"""Children that are watched, signalled and never outlive their parent."""

import os
import signal
import sys
from pathlib import Path

import pytest

from rolemesh.runtime.child_process import ChildProcess
from tests.lab.poll import eventually
from tests.lab.processes import is_running, run_to_end

PYTHON = sys.executable


def spawn(code: str, *args: str, **options: object) -> ChildProcess:
    options = {"environment": os.environ, "death_signal": signal.SIGKILL, **options}
    return ChildProcess.spawn((PYTHON, "-c", code, *args), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.abort()", -6),
    ],
)
async def test_a_childs_end_is_told(code: str, status: int) -> None:
    told: list[int] = []
    child = spawn(code, on_exit=told.append)
    assert await child.wait() == status
    assert (told, child.returncode) == ([status], status)


async def test_waiting_has_an_end_before_the_child_has() -> None:
    child = spawn("import time; time.sleep(60)")
    assert not await child.ended_within(0.01)
    assert child.returncode is None
    child.send_signal(signal.SIGTERM)
    assert await child.ended_within(10)
    assert await child.ended_within(0)
    child.send_signal(signal.SIGTERM)
    assert await child.wait() == -15


async def test_a_child_sees_its_environment_umask_and_descriptors_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_end, write_end = os.pipe()
    code = (
        "import os, sys, pathlib; pathlib.Path('new').touch(0o666);"
        "os.write(int(sys.argv[1]), repr((dict(os.environ), os.getpid() == os.getpgid(0),"
        "oct(os.stat('new').st_mode & 0o777))).encode())"
    )
    monkeypatch.chdir(tmp_path)
    child = spawn(
        code,
        str(write_end),
        environment={"A": "b", "LC_CTYPE": "C.UTF-8"},
        umask=0o007,
        keep_fds=(write_end,),
        new_session=True,
    )
    os.close(write_end)
    assert await child.wait() == 0
    environment, leads, mode = eval(os.read(read_end, 4096))
    os.close(read_end)
    assert (environment, leads, mode) == ({"A": "b", "LC_CTYPE": "C.UTF-8"}, True, "0o660")


async def test_broken_pipes_end_a_child_as_they_end_others() -> None:
    child = ChildProcess.spawn(
        ("/bin/sh", "-c", "kill -PIPE $$"), environment={}, death_signal=signal.SIGKILL
    )
    assert await child.wait() == -signal.SIGPIPE


@pytest.mark.parametrize(
    ("content", "mode", "status", "message"),
    [
        (None, 0, 127, "No such file or directory"),
        ("echo", 0o644, 126, "Permission denied"),
        ("\0\1", 0o755, 126, "Exec format error"),
    ],
)
async def test_a_program_that_cannot_be_executed_says_so(
    tmp_path: Path, content: str | None, mode: int, status: int, message: str
) -> None:
    program = tmp_path / "program"
    if content is not None:
        program.write_text(content)
        program.chmod(mode)
    read_end, write_end = os.pipe()
    child = ChildProcess.spawn(
        (str(program),), environment={}, death_signal=signal.SIGKILL, output_fd=write_end
    )
    os.close(write_end)
    assert await child.wait() == status
    assert os.read(read_end, 4096).decode() == f"cannot execute {program}: {message}\n"
    os.close(read_end)


PARENT = """
import asyncio, os, signal, sys
from rolemesh.runtime.child_process import ChildProcess
async def main():
    child = ChildProcess.spawn(
        (sys.executable, "-c", sys.argv[2]), environment=os.environ,
        death_signal=signal.Signals(int(sys.argv[1])), new_session=True)
    print(child.pid, flush=True)
    await asyncio.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def test_a_child_dies_with_its_parent_however_that_dies() -> None:
    code = "import time; time.sleep(60)"
    finished = await run_to_end([PYTHON, "-c", PARENT, str(int(signal.SIGKILL)), code])
    assert finished.status == -9
    pid = int(finished.stdout)
    await eventually(lambda: not is_running(pid), what="the child is gone")
