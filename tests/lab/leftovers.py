"""What a test must not leave behind: running tasks and living processes."""

import asyncio
import os
import resource
from pathlib import Path

from tests.lab.poll import StillNot, eventually, eventually_sync
from tests.lab.processes import is_running, kill, processes_marked

RUN_MARK = "ROLEMESH_TEST_RUN"
GRACE_S = 1


async def assert_no_task_left() -> None:
    """Fail if a task besides the calling one is still there after a moment to end in."""

    def ended() -> bool:
        return not _other_tasks()

    try:
        await eventually(ended, what="all tasks ended", deadline_s=GRACE_S)
    except StillNot:
        names = sorted(repr(task.get_coro()) for task in _other_tasks())
        msg = f"the test left tasks behind: {names}"
        raise AssertionError(msg) from None


def _other_tasks() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


class ProcessCheck:
    """Compares the processes after a test with those before it.

    Looking through all of /proc is slow where much runs, so it is done only after a test that had
    children. $ROLEMESH_TEST_RUN, inherited by whatever the tests start, tells which are ours.
    """

    def __init__(self) -> None:
        self._run = os.environ[RUN_MARK]
        self._faults_before = _children_faults()
        self._children_before = _children()
        self._before = self._marked() if self._children_before else set()

    def assert_nothing_left(self) -> None:
        """Fail if a process of the test still lives after a moment to end in; it is killed."""
        had_children = _children_faults() != self._faults_before
        if not had_children and _children() == self._children_before:
            return
        try:
            eventually_sync(lambda: not self._left(), what="all ended", deadline_s=GRACE_S)
        except StillNot:
            left = self._left()
            commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
            kill(left)
            msg = f"the test left processes behind: {dict(zip(left, commands, strict=True))}"
            raise AssertionError(msg) from None

    def _left(self) -> list[int]:
        return sorted(self._marked() - self._before)

    def _marked(self) -> set[int]:
        return {pid for pid in processes_marked(RUN_MARK, self._run) if pid != os.getpid()}


def _children() -> set[int]:
    """Return the living children of this process."""
    pids = (pid for thread in Path("/proc/self/task").iterdir() for pid in _children_of(thread))
    return {pid for pid in pids if is_running(pid)}


def _children_of(thread: Path) -> list[int]:
    try:
        return list(map(int, (thread / "children").read_text().split()))
    except OSError:  # it has ended meanwhile
        return []


def _children_faults() -> int:
    """Return a number that grows with every child that has ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
