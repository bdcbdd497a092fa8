"""Processes that the kernel ends for want of memory, by a limit of their own.

Hosts of the lab cannot limit memory themselves where the controllers of this machine belong to
control groups of the first version: so it is done here, from outside.
"""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from tests.lab.poll import eventually_sync

HIERARCHY = Path("/sys/fs/cgroup/memory")


def why_not() -> str:
    """Return why memory cannot be limited here, "" if it can."""
    try:
        with _group():
            return ""
    except OSError as err:
        return f"no control group of memory (v1) can be made here: {err}"


@contextlib.contextmanager
def short_of_memory(pid: int, limit_bytes: int) -> Iterator[None]:
    """Have the kernel end a process once it takes `limit_bytes` more than it has."""
    with _group() as group:
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
        (group / "cgroup.procs").write_text(str(pid))
        yield


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
