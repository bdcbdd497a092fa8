"""What operators do on the gateway's host, over stops and restarts of the gateway."""

import json
from typing import Any

import pytest

from tests.lab.host import Host
from tests.lab.poll import eventually_sync
from tests.system.mesh import GATEWAY_UNIT, Mesh

SOCKET = "/run/rolemesh/gateway/control.sock"
REGISTRY = "/var/lib/rolemesh/gateway/registry.json"


@pytest.fixture(scope="module", params=["trixie", "bookworm"])
def suite(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def ctl(host: Host, *words: str) -> Any:
    """Ask by rolemeshctl; return the JSON it prints."""
    return json.loads(host.run("rolemeshctl", *words, "--json").stdout)


def drained(mesh: Mesh) -> list[bool]:
    return [node["drained"] for node in ctl(mesh.gateway, "status")["nodes"]]


def test_the_socket_goes_with_the_gateway_and_drop_ins_below_run_stay(mesh: Mesh) -> None:
    host = mesh.gateway
    alias = {"models": {"sonnets": {"type": "discovered", "role": "poet"}}}
    host.run("mkdir", "-p", "/run/rolemesh/gateway.d")
    host.run("tee", "/run/rolemesh/gateway.d/80-sonnets.yaml", text=json.dumps(alias))
    host.run("systemctl", "stop", GATEWAY_UNIT)
    assert host.run("test", "-e", SOCKET, check=False).returncode != 0
    host.run("systemctl", "start", GATEWAY_UNIT)
    aliases = [each["alias"] for each in ctl(host, "aliases")["aliases"]]
    assert "sonnets" in aliases
    host.run("rm", "-r", "/run/rolemesh/gateway.d")
    assert ctl(host, "reload")["status"] == "reloaded"
    assert "sonnets" not in [each["alias"] for each in ctl(host, "aliases")["aliases"]]


def test_a_drain_outlives_a_restart_of_the_gateway(mesh: Mesh) -> None:
    mesh.wait_until_usable("coder")
    host, (node,) = mesh.gateway, ctl(mesh.gateway, "status")["nodes"]
    path = f"/v1/rolemesh/nodes/{node['node_id']}"
    assert mesh.ask("POST", f"{path}/drain").status == 403  # the client's key is no operator's
    host.run("rolemeshctl", "drain", node["node_id"])
    assert mesh.chat("coder").status == 503
    eventually_sync(
        lambda: json.loads(host.run("cat", REGISTRY).stdout)["drained"] == [node["node_id"]],
        what="the drain is saved",
    )
    host.run("systemctl", "restart", GATEWAY_UNIT)
    eventually_sync(lambda: drained(mesh) == [True], what="the node is known, and drained")
    host.run("rolemeshctl", "undrain", node["node_id"])
    mesh.wait_until_usable("coder")
