"""Many requests at once for a model that is loaded nowhere: one node loads it, once, for all."""

import json

import pytest

from tests.lab.hosts import Lab
from tests.lab.poll import eventually_sync
from tests.system.conftest import InstalledRoot
from tests.system.gpu_hosts import (
    BootGpuHost,
    Clients,
    GpuHost,
    loads_of,
    memory_rules,
    running,
    sized_model,
)
from tests.system.mesh import Mesh, start_gateway

REQUESTS = 20
ROLE = "held-planner"


@pytest.fixture(scope="module")
def pair(lab: Lab, installed_root: InstalledRoot, boot_gpu_host: BootGpuHost) -> list[GpuHost]:
    """Return two hosts with a GPU each that offer the same model to the same gateway."""
    (gateway,) = lab.boot(["gw"], root=installed_root("trixie"))
    start_gateway(gateway)
    models = [sized_model(ROLE, 18_000, parallel=4)]
    hosts = [boot_gpu_host(name, gpus=1, memory=memory_rules(models)) for name in ("left", "right")]
    for each in hosts:
        each.run_agent(gateway, {"models": models})
    return hosts


@pytest.fixture(scope="module")
def meshes(lab: Lab, pair: list[GpuHost]) -> list[Mesh]:
    """Return the mesh as seen with each of the two as the node."""
    gateway = lab.hosts[0]
    meshes = [Mesh(lab=lab, gateway=gateway, node=each.host) for each in pair]

    def both_offer_it() -> bool:
        status = gateway.run("rolemeshctl", "status", "--json").stdout
        return len(json.loads(status)["nodes"]) == 2

    eventually_sync(both_offer_it, what="both nodes have registered", deadline_s=30)
    meshes[0].wait_until_usable(ROLE)
    return meshes


def test_twenty_requests_to_a_cold_model_on_two_nodes_cause_one_load(
    pair: list[GpuHost], meshes: list[Mesh]
) -> None:
    mesh = meshes[0]
    with Clients(mesh) as clients:
        replies = [clients.chat(ROLE) for _ in range(REQUESTS)]
        eventually_sync(lambda: len(under_way(mesh)) == REQUESTS, what="all of them are there")
        eventually_sync(lambda: begun(pair) > 0, what="a load has begun")
        for each in pair:
            each.open_gate()
        assert [each.result().says for each in replies] == [f"here is the {ROLE}"] * REQUESTS
    assert begun(pair) == 1
    assert sorted(len(running(each)) for each in meshes) == [0, 1]


def begun(pair: list[GpuHost]) -> int:
    """Return how many loads have begun on both hosts together."""
    return sum(loads_of(each.host, f"{ROLE}-gguf") for each in pair)


def under_way(mesh: Mesh) -> list[object]:
    """Return the requests that the gateway has and has not answered."""
    shown = mesh.gateway.run("rolemeshctl", "ps", "--json").stdout
    requests: list[object] = json.loads(shown)["requests"]
    return requests
