import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.poll import StillNot, eventually
from tests.lab.processes import (
    Program,
    ProgramEnded,
    free_port,
    is_running,
    run_to_end,
    running,
    start_program,
)

STUBBORN = "trap 'echo no' TERM; echo up; while :; do sleep 0.05; done"
# A descendant in a session of its own whose parent has ended.
RUNAWAY = "setsid sleep 60 & echo started; exit 3"


def shell(script: str) -> list[str | Path]:
    return ["bash", "-c", script]


def sleeping(program: Program) -> list[int]:
    """Return those processes of a program that are `sleep` by now."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in program.processes()}
    return [pid for pid, command in commands.items() if command.startswith(b"sleep\0")]


async def test_lines_of_a_program_can_be_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with running(shell("echo port 17 >&2; sleep 60"), log=log) as program:
        assert (await program.line(r"port (\d+)")).group(1) == "17"
        assert program.lines() == ["port 17"]
        assert is_running(program.pid)
    assert program.status == -signal.SIGTERM
    assert not is_running(program.pid)


async def test_waiting_for_a_line_ends_with_the_program_and_shows_its_output(
    start_program: Callable[..., Program],
) -> None:
    program = start_program(shell("echo cannot bind; exit 3"))
    with pytest.raises(ProgramEnded, match=r"status 3(?s:.)*cannot bind"):
        await program.line("ready")
    assert await program.end() == 3


async def test_a_program_gets_the_environment_it_is_given(
    start_program: Callable[..., Program],
) -> None:
    program = start_program(shell("echo $FRUIT"), {"FRUIT": "pear"})
    await program.line("^pear$")


async def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    program = start_program(shell(STUBBORN), log=tmp_path / "log")
    await program.line("up")
    with pytest.raises(StillNot, match="ended"):
        await program.stop(grace_s=0.3)
    assert program.status == -signal.SIGKILL
    await program.assert_nothing_left()


async def test_a_descendant_that_ran_away_is_found_and_killed(tmp_path: Path) -> None:
    program = start_program(shell(RUNAWAY), log=tmp_path / "log")
    assert await program.end() == 3
    # While a program is replaced by another (bash, setsid, sleep) it has no environment to be seen.
    (runaway,) = await eventually(lambda: sleeping(program), what="it has become `sleep`")
    with pytest.raises(StillNot, match="all processes"):
        await program.assert_nothing_left(deadline_s=0.1)
    await eventually(lambda: not is_running(runaway), what="the runaway is gone")


async def test_a_short_program_is_run_to_its_end() -> None:
    done = await run_to_end(shell("echo out; echo err >&2; exit 7"))
    assert (done.status, done.stdout, done.stderr) == (7, "out\n", "err\n")


async def test_a_short_program_that_is_not_short_is_killed() -> None:
    with pytest.raises(TimeoutError):
        await run_to_end(["sleep", "60"], deadline_s=0.1)


def test_a_zombie_is_not_running() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_running(process.pid)


def test_a_free_port_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass
