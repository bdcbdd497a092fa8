"""Control groups of cgroup2: what runs in one is found, and ended, whatever became of its parents."""

import os
from pathlib import Path

from tests.lab.poll import eventually_sync


def hierarchy() -> Path | None:
    """Return where this machine has its cgroup2 hierarchy, None where it has none."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, folder, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(folder)
    return None


def top_group(name: str) -> Path:
    """Return the folder of the control group `name`, which need not be there."""
    top = hierarchy()
    if top is None:
        msg = "no cgroup2 hierarchy is mounted here"
        raise FileNotFoundError(msg)
    return top / name


def end_all(group: Path) -> None:
    """Kill all that runs in a control group, and wait until it is gone."""
    if not group.exists():
        return
    (group / "cgroup.kill").write_text("1")
    events = group / "cgroup.events"
    eventually_sync(lambda: "populated 0" in events.read_text(), what=f"{group} is empty")


def remove(group: Path) -> None:
    """End all that runs in a control group, and remove it with those below it."""
    end_all(group)
    for folder, _, _ in os.walk(group, topdown=False):
        Path(folder).rmdir()
