"""The processes that are left of a unit when its main process, their group's leader, has ended."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_ENDED: Final = frozenset({"Z", "X", "x"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A process; `started` is when, in clock ticks since boot: its pid may be another's later."""

    pid: int
    started: int

    def is_there(self) -> bool:
        """Tell whether it has not ended yet."""
        found = _read(self.pid)
        return found is not None and found[1] == self


def kill_group(leader: int) -> tuple[Leftover, ...]:
    """Kill what is left of a process group; return those that are not gone at once."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return ()
    pids = (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())
    found = filter(None, map(_read, pids))
    return tuple(process for group, process in found if group == leader)


def _read(pid: int) -> tuple[int, Leftover] | None:
    """Return a process's group and itself (proc_pid_stat(5)), None when it has ended."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    state, _parent, group, *others = text.rpartition(")")[2].split()
    if state in _ENDED:
        return None
    return int(group), Leftover(pid=pid, started=int(others[16]))
