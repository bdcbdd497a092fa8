"""The gateway's program is replaced and hands over, while clients go on asking and reading."""

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPResponse

import pytest

from tests.lab.host import Host
from tests.lab.poll import eventually_sync
from tests.system.hammer import hammering
from tests.system.mesh import GATEWAY_PORT, GATEWAY_UNIT, Mesh, drop_in

DRAIN_S = 3
MARGIN_S = 2
GAP_S = 0.5
LONG_TOKENS = 5000  # some seconds of it
PACKAGE = "/usr/lib/python3/dist-packages/rolemesh"


@pytest.fixture(scope="module", params=["trixie", "bookworm"])
def suite(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def restarted(mesh: Mesh) -> None:
    """Begin with one process."""
    drop_in(mesh.gateway, "gateway", "60-drain.yaml", {"limits": {"drain_s": DRAIN_S}})
    mesh.gateway.run("systemctl", "restart", GATEWAY_UNIT)
    mesh.wait_until_usable("poet")


def upgrade(host: Host, version: str) -> None:
    """Replace the program as a package manager does: by renaming."""
    edit = f's/^\\(__version__.*=\\).*/\\1 "{version}"/'
    host.run("sed", "-i", edit, f"{PACKAGE}/__init__.py")


def hand_over(host: Host, version: str) -> int:
    """Upgrade and reload, and return the pid of the new main process."""
    before = main_pid(host)
    upgrade(host, version)
    host.run("systemctl", "reload", GATEWAY_UNIT)
    after = main_pid(host)
    assert after != before
    return after


def main_pid(host: Host) -> int:
    return int(host.show(GATEWAY_UNIT, "MainPID"))


def processes(host: Host) -> set[int]:
    """Return the pids of the unit."""
    group = f"/sys/fs/cgroup{host.show(GATEWAY_UNIT, 'ControlGroup')}/cgroup.procs"
    return {int(line) for line in host.run("cat", group, check=False).stdout.split()}


@contextmanager
def stream(mesh: Mesh, **fields: int) -> Iterator[HTTPResponse]:
    """Have an answer under way of which no more than the first event was read."""
    with (
        closing(mesh.connect()) as connection,
        closing(connection.stream("poet", **fields)) as reply,
    ):
        yield reply


def requests(host: Host) -> dict[str, int]:
    """Count the requests under way in the main process."""
    printed = host.run("rolemeshctl", "status", "--json").stdout
    counted: dict[str, int] = json.loads(printed)["requests"]
    return counted


@contextmanager
def queued(mesh: Mesh) -> Iterator[None]:
    """Have a request wait for the only slot."""
    body = {"model": "poet", "messages": [{"role": "user", "content": "go"}], "stream": True}
    with closing(mesh.connect()) as connection:
        connection.send("POST", "/v1/chat/completions", body)
        eventually_sync(lambda: requests(mesh.gateway)["queued"] == 1, what="it waits")
        yield


def test_an_upgrade_stalls_nobody(mesh: Mesh) -> None:
    host = mesh.gateway
    first, restarts = main_pid(host), host.show(GATEWAY_UNIT, "NRestarts")
    with stream(mesh, max_tokens=LONG_TOKENS) as reply:
        with hammering(mesh.lab, host, GATEWAY_PORT) as hammered:
            hammered.wait_for_more()
            second = hand_over(host, "7.0.0")
            hammered.wait_for_more()
        assert (hammered.refused, hammered.broken, hammered.surprises) == (0, 0, [])
        assert hammered.longest_s <= GAP_S
        assert mesh.ask("GET", "/health").json["version"] == "7.0.0"
        assert mesh.chat("planner").says == "the plan of the planner"
        assert processes(host) == {first, second}
        assert reply.read().endswith(b"data: [DONE]\n\n")
    eventually_sync(lambda: processes(host) == {second}, what="the old process ends")
    assert host.show(GATEWAY_UNIT, "ActiveState") == "active"
    assert host.show(GATEWAY_UNIT, "NRestarts") == restarts
    records = host.journal(f"_PID={first}", "ROLEMESH_ALIAS=poet")
    assert [each["ROLEMESH_STATUS"] for each in records] == ["200"]
    assert "listening" in host.show(GATEWAY_UNIT, "StatusText")


def test_a_crash_of_the_new_process_is_noticed_at_once(mesh: Mesh) -> None:
    """It is a child of systemd, like the first one."""
    with stream(mesh):
        victim = hand_over(mesh.gateway, "7.1.0")
        mesh.gateway.run("kill", "-9", str(victim))
        eventually_sync(
            lambda: main_pid(mesh.gateway) not in {0, victim}, what="another one", deadline_s=10
        )
    eventually_sync(lambda: len(processes(mesh.gateway)) == 1, what="one process")
    assert mesh.ask("GET", "/health").json["version"] == "7.1.0"


def test_a_broken_program_fails_the_reload_and_the_old_one_serves_on(mesh: Mesh) -> None:
    host = mesh.gateway
    first, main = main_pid(host), f"{PACKAGE}/gateway/main.py"
    host.run("sed", "-i", "1i def main(:", main)
    try:
        upgrade(host, "8.0.0")
        failed = host.run("systemctl", "reload", GATEWAY_UNIT, check=False)
    finally:
        host.run("sed", "-i", "1d", main)
    assert failed.returncode != 0
    assert "SyntaxError" in host.journal_text(f"--unit={GATEWAY_UNIT}")
    assert processes(host) == {first}
    assert host.show(GATEWAY_UNIT, "ActiveState") == "active"
    assert mesh.chat("planner").says == "the plan of the planner"
    assert hand_over(host, "8.0.1") != first


def test_several_hand_overs_and_a_stop_that_ends_all(mesh: Mesh) -> None:
    host = mesh.gateway
    pids = {main_pid(host)}
    with stream(mesh), hammering(mesh.lab, host, GATEWAY_PORT) as hammered:
        pids.add(hand_over(host, "9.0.0"))
        with queued(mesh):
            pids.add(hand_over(host, "9.1.0"))
            hammered.wait_for_more()
            assert processes(host) == pids
            began = time.monotonic()
            host.run("systemctl", "restart", GATEWAY_UNIT)
            assert time.monotonic() - began <= DRAIN_S + MARGIN_S
            assert not processes(host) & pids
            hammered.wait_for_more()
    assert (hammered.refused, hammered.broken, hammered.surprises) == (0, 0, [])
    assert hammered.longest_s <= DRAIN_S + MARGIN_S


def test_a_stop_ends_those_that_still_drain(mesh: Mesh) -> None:
    host = mesh.gateway
    with stream(mesh):
        hand_over(host, "10.0.0")
        began = time.monotonic()
        host.run("systemctl", "stop", GATEWAY_UNIT)
        assert time.monotonic() - began <= DRAIN_S + MARGIN_S
        assert processes(host) == set()
        assert host.show(GATEWAY_UNIT, "Result") == "success"
        assert host.show(GATEWAY_UNIT, "NFileDescriptorStore") == "0"
