"""The program between fork and exec."""

import os
import signal
import sys

from rolemesh.runtime import tied_exec
from tests.lab.processes import run_to_end


async def test_a_program_whose_parent_is_gone_already_does_not_begin() -> None:
    absent_parent = str(os.getppid())
    command = [
        sys.executable,
        "-I",
        "-S",
        tied_exec.__file__,
        "15",
        absent_parent,
        "/bin/echo",
        "x",
    ]
    finished = await run_to_end(command)
    assert (finished.status, finished.stdout) == (-signal.SIGKILL, "")


async def test_a_program_is_executed_with_its_arguments() -> None:
    own = str(os.getpid())
    command = [sys.executable, "-I", "-S", tied_exec.__file__, "15", own, "/bin/echo", "a b", "c"]
    finished = await run_to_end(command)
    assert (finished.status, finished.stdout) == (0, "a b c\n")
