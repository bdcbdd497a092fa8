"""Where the kernel counts whom it has ended for want of memory."""

from pathlib import Path

import pytest

from rolemesh.llama.oom_kills import OomKills

EVENTS = "low 0\nhigh 0\nmax 4\noom 3\noom_kill 2\noom_group_kill 1\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine that has counted seven kills, none of them in our control group."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "vmstat").write_text("nr_free_pages 1\noom_kill 7\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/rolemesh.slice/x@gpu0.service\n")
    (tmp_path / "cgroup" / "rolemesh.slice" / "x@gpu0.service").mkdir(parents=True)
    return tmp_path


def kills(machine: Path) -> int:
    return OomKills(machine / "proc", machine / "cgroup").count()


def test_our_own_control_group_counts_most_exactly(machine: Path) -> None:
    group = machine / "cgroup" / "rolemesh.slice" / "x@gpu0.service"
    (group / "memory.events").write_text(EVENTS)
    assert kills(machine) == 2


def test_so_does_one_of_the_first_version(machine: Path) -> None:
    lines = "9:name=systemd:/x\n4:cpuset,memory:/a\n0::/x\n"
    (machine / "proc" / "self" / "cgroup").write_text(lines)
    (machine / "cgroup" / "memory" / "a").mkdir(parents=True)
    control = machine / "cgroup" / "memory" / "a" / "memory.oom_control"
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert kills(machine) == 1


@pytest.mark.parametrize("events", ["", "oom_kill\n", "oom_kill many\n"])
def test_without_a_count_there_the_machines_is_taken(machine: Path, events: str) -> None:
    group = machine / "cgroup" / "rolemesh.slice" / "x@gpu0.service"
    (group / "memory.events").write_text(events)
    assert kills(machine) == 7


def test_without_any_count_there_were_none(tmp_path: Path) -> None:
    assert OomKills(tmp_path, tmp_path).count() == 0
