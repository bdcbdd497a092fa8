"""Processes that cannot be killed, as those that wait in a broken driver: frozen ones.

Only the freezer of control groups of the first version keeps a process from dying; that of cgroup2
lets SIGKILL through.
"""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from tests.lab.poll import eventually_sync

HIERARCHY = Path("/sys/fs/cgroup/freezer")


def why_not() -> str:
    """Return why no process can be frozen here, "" if one can."""
    try:
        with _group():
            return ""
    except OSError as err:
        return f"no control group of the freezer (v1) can be made here: {err}"


@contextlib.contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Freeze processes for the length of the block; what they were sent reaches them after it."""
    with _group() as group:
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        state = group / "freezer.state"
        state.write_text("FROZEN")
        try:
            eventually_sync(lambda: state.read_text().strip() == "FROZEN", what="frozen")
            yield
        finally:
            state.write_text("THAWED")


@contextlib.contextmanager
def _group() -> Iterator[Path]:
    group = HIERARCHY / f"rolemesh-test-{secrets.token_hex(4)}"
    group.mkdir()
    try:
        yield group
    finally:
        top = HIERARCHY / "cgroup.procs"
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                top.write_text(pid)
        eventually_sync(lambda: not (group / "cgroup.procs").read_text(), what="the group is empty")
        group.rmdir()
