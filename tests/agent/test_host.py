"""What the machine is."""

from pathlib import Path

from rolemesh.agent.host import read_host


def test_memory_is_read_in_mib(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  2097152 kB\nMemAvailable: 1048576 kB\nHugePages_Total: 0\n")
    host = read_host(meminfo)
    assert (host.memory_total_mib, host.memory_available_mib) == (2048, 1024)
    assert host.cpus >= 1


def test_without_proc_memory_is_not_known(tmp_path: Path) -> None:
    tree = read_host(tmp_path / "absent").to_json()
    assert tree["memory_total_mib"] is None
    assert tree["hostname"]


def test_this_machine_has_memory() -> None:
    assert (read_host().memory_total_mib or 0) > 0
