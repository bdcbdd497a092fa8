"""The gateway restarts, is killed, and stops, while clients go on connecting to it."""

import time
from collections.abc import Iterator

import pytest

from tests.lab.host import Host
from tests.lab.poll import eventually_sync
from tests.system.hammer import hammering
from tests.system.mesh import GATEWAY_PORT, GATEWAY_UNIT, Mesh, drop_in

DRAIN_S = 3
MARGIN_S = 2


@pytest.fixture(scope="module", params=["trixie", "bookworm"])
def suite(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def short_drain(mesh: Mesh) -> None:
    drop_in(mesh.gateway, "gateway", "60-drain.yaml", {"limits": {"drain_s": DRAIN_S}})
    mesh.gateway.run("systemctl", "restart", GATEWAY_UNIT)


@pytest.fixture
def endless_stream(mesh: Mesh) -> Iterator[None]:
    """Keep a client attached whose answer does not end; it reads no more than the first event."""
    mesh.wait_until_usable("poet")
    connection = mesh.connect()
    reply = connection.stream("poet")
    yield
    reply.close()
    connection.close()


def main_pid(host: Host) -> str:
    return host.show(GATEWAY_UNIT, "MainPID")


def is_active(host: Host) -> bool:
    return host.show(GATEWAY_UNIT, "ActiveState") == "active"


def kill_gateway(host: Host) -> None:
    """Kill the gateway, and wait for its successor."""
    victim = main_pid(host)
    host.run("kill", "-9", victim)
    eventually_sync(lambda: is_active(host) and main_pid(host) != victim, what="a new gateway")


def test_restarts_refuse_and_break_no_connection(mesh: Mesh) -> None:
    with hammering(mesh.lab, mesh.gateway, GATEWAY_PORT) as hammered:
        for _ in range(5):
            hammered.wait_for_more()
            mesh.gateway.run("systemctl", "restart", GATEWAY_UNIT)
        hammered.wait_for_more()
    assert (hammered.refused, hammered.broken, hammered.surprises) == (0, 0, [])
    assert hammered.longest_s <= DRAIN_S + MARGIN_S


def test_a_killed_gateway_refuses_no_connection(mesh: Mesh) -> None:
    with hammering(mesh.lab, mesh.gateway, GATEWAY_PORT) as hammered:
        for _ in range(3):
            hammered.wait_for_more()
            kill_gateway(mesh.gateway)
        hammered.wait_for_more()
    assert (hammered.refused, hammered.surprises) == (0, [])


def test_no_new_connection_waits_for_an_endless_stream(mesh: Mesh, endless_stream: None) -> None:
    with hammering(mesh.lab, mesh.gateway, GATEWAY_PORT) as hammered:
        hammered.wait_for_more()
        mesh.gateway.run("systemctl", "restart", GATEWAY_UNIT)
        hammered.wait_for_more()
    assert (hammered.refused, hammered.broken, hammered.surprises) == (0, 0, [])
    assert hammered.longest_s <= DRAIN_S + MARGIN_S


def test_stop_stops_although_a_stream_is_attached(mesh: Mesh, endless_stream: None) -> None:
    began = time.monotonic()
    mesh.gateway.run("systemctl", "stop", GATEWAY_UNIT)
    assert time.monotonic() - began <= DRAIN_S + MARGIN_S
    assert mesh.gateway.show(GATEWAY_UNIT, "Result") == "success"
    assert mesh.gateway.show(GATEWAY_UNIT, "NFileDescriptorStore") == "0"
    with pytest.raises(ConnectionRefusedError):
        mesh.connect()
    mesh.gateway.run("systemctl", "start", GATEWAY_UNIT)
    assert mesh.ask("GET", "/health").status == 200
