"""What a former run of the unit left behind."""

import os
from pathlib import Path

import pytest

from rolemesh.llama.leftovers import LeftProcesses, leftover_pids, wait_for_leftovers
from rolemesh.names import InstanceName

GPU0 = InstanceName("gpu0")
UNIT = "/system.slice/rolemesh-llama@gpu0.service"


def machine(folder: Path, *pids: int, group: str = UNIT) -> tuple[Path, Path]:
    """Make what the kernel shows of this process's control group; return /proc and /sys/fs/cgroup."""
    proc, cgroups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(f"1:name=systemd:/x\n0::{group}\n")
    directory = cgroups / group.lstrip("/")
    directory.mkdir(parents=True)
    (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    return proc, cgroups


def test_everybody_else_in_the_units_group_is_a_leftover(tmp_path: Path) -> None:
    assert leftover_pids(GPU0, *machine(tmp_path, os.getpid(), 4711, 4712)) == (4711, 4712)


@pytest.mark.parametrize("group", ["/", "/user.slice/x.scope", UNIT.replace("gpu0", "gpu1")])
def test_outside_the_instances_unit_nothing_is(tmp_path: Path, group: str) -> None:
    assert leftover_pids(GPU0, *machine(tmp_path, 4711, group=group)) == ()


def test_where_nothing_can_be_told_nothing_is(tmp_path: Path) -> None:
    assert leftover_pids(GPU0, tmp_path / "proc", tmp_path / "cgroup") == ()


def test_who_is_gone_in_time_keeps_nobody(tmp_path: Path) -> None:
    proc, cgroups = machine(tmp_path, 4711)
    heard: list[str] = []

    def waiting(text: str) -> None:
        heard.append(text)
        (cgroups / UNIT.lstrip("/") / "cgroup.procs").write_text(f"{os.getpid()}\n")

    wait_for_leftovers(GPU0, wait_s=60, waiting=waiting, proc=proc, cgroups=cgroups)
    assert heard == ["processes of the last run (pid 4711)"]


def test_who_never_goes_is_named(tmp_path: Path) -> None:
    proc, cgroups = machine(tmp_path, 4711, 4712)
    with pytest.raises(LeftProcesses, match="cannot be killed: pid 4711, pid 4712"):
        wait_for_leftovers(GPU0, wait_s=0, waiting=print, proc=proc, cgroups=cgroups)
