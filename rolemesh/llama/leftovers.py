"""Processes that a former run of this unit left behind: SIGKILL did not end them.

systemd gives up on them and starts the unit anew beside them, in the same control group; its runtime
directory, with the lock, is a new one by then. A second llama-server would find the memory of its
GPU still taken, if not the driver hanging.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rolemesh.errors import NodeError
from rolemesh.names import InstanceName

POLL_S: Final = 0.1
_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")


class LeftProcesses(NodeError):
    """Processes of a former run are still there and cannot be killed."""

    def __init__(self, pids: tuple[int, ...]) -> None:
        super().__init__(f"processes of the last run cannot be killed: {_listed(pids)}")
        self.pids = pids


def wait_for_leftovers(
    instance: InstanceName,
    *,
    wait_s: float,
    waiting: Callable[[str], None],
    proc: Path = _PROC,
    cgroups: Path = _CGROUPS,
) -> None:
    """Return once this process is alone in its unit; `waiting` hears who is not gone.

    Raises LeftProcesses after `wait_s`. Outside the instance's own unit there is nothing to wait for.
    """
    deadline = time.monotonic() + wait_s
    while pids := leftover_pids(instance, proc, cgroups):
        if time.monotonic() >= deadline:
            raise LeftProcesses(pids)
        waiting(f"processes of the last run ({_listed(pids)})")
        time.sleep(POLL_S)


def leftover_pids(
    instance: InstanceName, proc: Path = _PROC, cgroups: Path = _CGROUPS
) -> tuple[int, ...]:
    """Return the other processes in the control group of the instance's unit (cgroup v2)."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
        group = next(line.removeprefix("0::") for line in lines if line.startswith("0::"))
        if not group.endswith(f"rolemesh-llama@{instance}.service"):
            return ()
        listed = (cgroups / group.lstrip("/") / "cgroup.procs").read_text().split()
    except (OSError, StopIteration):
        return ()
    return tuple(pid for pid in map(int, listed) if pid not in {0, os.getpid()})


def _listed(pids: tuple[int, ...]) -> str:
    return ", ".join(f"pid {pid}" for pid in pids)
