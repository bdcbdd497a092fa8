"""What conftest.py demands of every test, shown by runs of pytest of its own."""

import sys
from pathlib import Path

import pytest

from tests.lab.processes import Finished, run_to_end

ROOT = Path(__file__).parents[1]

LEAKY_TESTS = """
import asyncio, subprocess

forgotten = []

def test_process():
    forgotten.append(subprocess.Popen(["sleep", "60"]))

async def test_task():
    forgotten.append(asyncio.get_running_loop().create_task(asyncio.sleep(60)))

def test_clean():
    subprocess.run(["true"], check=True)
"""

SKIPPING_TESTS = """
def test_with_a_model(llama_server):
    pass

async def test_without():
    pass
"""


async def run_pytest(folder: Path, tests: str, *options: str) -> Finished:
    """Run `tests` with our configuration and conftest.py, on a machine without llama-server."""
    path = folder / "test_it.py"
    path.write_text(tests)
    ours = ("-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest", "-p", "no:cacheprovider")
    return await run_to_end(
        [sys.executable, "-m", "pytest", *ours, *options, path],
        environment={"PYTHONPATH": str(ROOT), "ROLEMESH_TEST_LLAMA_SERVER": "/nowhere"},
    )


async def test_a_test_that_leaves_a_process_or_a_task_behind_fails(tmp_path: Path) -> None:
    done = await run_pytest(tmp_path, LEAKY_TESTS)
    assert "the test left processes behind" in done.stdout
    assert "the test left tasks behind" in done.stdout
    assert "3 passed, 2 errors" in done.stdout


async def test_without_a_llama_server_its_tests_are_skipped_with_the_reason(tmp_path: Path) -> None:
    done = await run_pytest(tmp_path, SKIPPING_TESTS)
    assert "/nowhere: no such program" in done.stdout
    assert "1 passed, 1 skipped" in done.stdout
    assert done.status == 0


@pytest.mark.parametrize(("mark", "status"), [("llama", 1), ("system", 1), ("asyncio", 0)])
async def test_a_run_that_did_not_run_what_must_run_fails(
    tmp_path: Path, mark: str, status: int
) -> None:
    done = await run_pytest(tmp_path, SKIPPING_TESTS, f"--must-run={mark}")
    assert done.status == status
    assert (f"--must-run {mark}: " in done.stdout) == (status != 0)
