"""The lab itself: its hosts are what the other system tests take them for."""

from collections.abc import Callable

import pytest

from tests.lab.host import Host, HostError
from tests.lab.hosts import Lab
from tests.system.conftest import Layers


@pytest.fixture(scope="module")
def pair(lab: Lab, unpacked_root: Callable[[str], Layers]) -> list[Host]:
    return lab.boot(["left", "right"], root=unpacked_root("trixie"))


def test_a_host_runs_systemd_and_nothing_failed_at_its_boot(pair: list[Host]) -> None:
    for host in pair:
        assert host.run("cat", "/proc/1/comm").stdout == "systemd\n"
        assert host.run("systemctl", "--failed", "--no-legend").stdout == ""


def test_hosts_reach_each_other_by_name(pair: list[Host]) -> None:
    left, right = pair
    assert right.address in left.run("getent", "hosts", "right").stdout
    question = f"import socket; socket.create_connection(('{right.address}', 22), 2)"
    refused = left.run("python3", "-c", question, check=False)
    assert "ConnectionRefusedError" in refused.stderr  # by its kernel: it is there


def test_a_failed_command_is_told_with_its_output(pair: list[Host]) -> None:
    with pytest.raises(HostError, match=r"status 2(?s:.)*No such file"):
        pair[0].run("ls", "/nowhere")


def test_a_power_cut_keeps_the_disk_and_the_journal(lab: Lab, pair: list[Host]) -> None:
    left, right = pair
    right.put("/srv/kept", "kept\n")
    right.run("logger", "--id=1", "before the cut")
    right.run("journalctl", "--sync")
    right.kill_power()
    with pytest.raises(TimeoutError):
        lab.network.connect("right", 22, timeout_s=0.3)
    right.boot()
    assert right.run("cat", "/srv/kept").stdout == "kept\n"
    assert "before the cut" in [entry["MESSAGE"] for entry in right.journal()]
    assert left.is_up


def test_a_pulled_cable_is_silent_until_it_is_plugged_in_again(lab: Lab, pair: list[Host]) -> None:
    left, _ = pair
    left.pull_cable()
    with pytest.raises(TimeoutError):
        lab.network.connect("left", 22, timeout_s=0.3)
    left.plug_cable()
    with pytest.raises(ConnectionRefusedError):
        lab.network.connect("left", 22)
