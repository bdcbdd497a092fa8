"""How many processes the kernel has ended for want of memory, where that can be told most exactly."""

from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


class OomKills:
    """Counts those of this process's control group, else those of this machine.

    memory.events (cgroup v2) counts kills of the group's processes for whatever reason;
    memory.oom_control (v1) and vmstat, in proc(5), do the same for theirs.
    """

    def __init__(self, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> None:
        files = (*_group_files(proc, cgroups), proc / "vmstat")
        self._file = next((file for file in files if _read_count(file) is not None), None)

    def count(self) -> int:
        """Return how many there were so far; 0 where nobody counts."""
        return (_read_count(self._file) or 0) if self._file is not None else 0


def _group_files(proc: Path, cgroups: Path) -> Iterator[Path]:
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0":
            yield cgroups / group.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            yield cgroups / "memory" / group.lstrip("/") / "memory.oom_control"


def _read_count(file: Path) -> int | None:
    try:
        rows = (line.split() for line in file.read_text().splitlines())
        return next((int(row[1]) for row in rows if row[:1] == ["oom_kill"]), None)
    except (OSError, ValueError, IndexError):
        return None
