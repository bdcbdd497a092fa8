"""Two roles whose models share one GPU by taking turns: neither is cut short, both are served."""

import time
from itertools import groupby
from typing import Any

import pytest

from tests.lab.hosts import Lab
from tests.lab.poll import eventually_sync
from tests.system.conftest import InstalledRoot
from tests.system.gpu_hosts import (
    BootGpuHost,
    Clients,
    agent_lines,
    memory_rules,
    place_of,
    running,
    sized_model,
    unload_all,
)
from tests.system.mesh import ENDLESS_TOKENS, Mesh, model, start_gateway

LARGE_MIB = 18_000
SWITCH_AFTER_S = 3
MIN_RESIDENT_S = 2
# Waiting for its turn, the turn's shortest length, the release of the memory and a load, on a
# machine that is busy with other tests.
BOUND_S = 30
TURNS = 4


def all_models() -> list[dict[str, Any]]:
    poet = model("poet", says="on and on", loop=True, context=ENDLESS_TOKENS)
    return [
        sized_model("day", LARGE_MIB),
        sized_model("night", LARGE_MIB),
        {**poet, "memory_mib": LARGE_MIB},
    ]


@pytest.fixture(scope="module")
def loaded_mesh(lab: Lab, installed_root: InstalledRoot, boot_gpu_host: BootGpuHost) -> Mesh:
    """Return a gateway, and a node with one GPU."""
    (gateway,) = lab.boot(["gw"], root=installed_root("trixie"))
    start_gateway(gateway)
    solo = boot_gpu_host("solo", gpus=1, memory=memory_rules(all_models()))
    policy = {"switch_after_s": SWITCH_AFTER_S, "min_resident_s": MIN_RESIDENT_S}
    solo.run_agent(gateway, {"models": all_models(), "policy": policy})
    mesh = Mesh(lab=lab, gateway=gateway, node=solo.host)
    mesh.wait_until_usable("day")
    return mesh


@pytest.fixture
def mesh(loaded_mesh: Mesh) -> Mesh:
    """Return the mesh with nothing loaded."""
    unload_all(loaded_mesh)
    return loaded_mesh


def test_a_busy_model_goes_for_another_only_after_switch_after_s(mesh: Mesh) -> None:
    reader = mesh.connect()
    stream = reader.stream("poet")
    with Clients(mesh) as clients:
        asked_at = time.monotonic()
        asked = clients.chat("day")
        eventually_sync(lambda: "busy with poet-gguf" in plan(mesh, "day"), what="it waits")
        assert running(mesh) == {"gpu0": "poet-gguf"}
        eventually_sync(
            lambda: mesh.instances()["gpu0"]["state"] == "draining",
            what="the turn is over",
            deadline_s=BOUND_S,
        )
        assert time.monotonic() - asked_at >= SWITCH_AFTER_S
        # It finishes what it has begun.
        assert all(stream.readline() for _ in range(100))
        assert not asked.done()
        stream.close()
        reader.close()
        assert asked.result().says == "here is the day"
    assert place_of(mesh, "day") == "gpu0"
    assert any("gpu0: ready -> draining" in line for line in agent_lines(mesh.node))


def plan(mesh: Mesh, role: str) -> str:
    """Return what the agent says of where a role's model could go now."""
    return mesh.ask_node("GET", f"/v1/node/plan?model={role}-gguf").text


def test_two_roles_in_steady_use_take_turns_on_one_gpu(mesh: Mesh) -> None:
    served: list[str] = []

    def turns() -> int:
        return sum(1 for _ in groupby(list(served)))

    def ask_on_and_on(role: str) -> float:
        """Ask until there have been enough turns; return the longest time an answer took."""
        longest_s = 0.0
        while turns() < TURNS:
            began = time.monotonic()
            assert mesh.chat(role).says == f"here is the {role}"
            longest_s = max(longest_s, time.monotonic() - began)
            served.append(role)
        return longest_s

    with Clients(mesh) as clients:
        asking = [clients.run(ask_on_and_on, role) for role in ("day", "day", "night", "night")]
        longest_s = max(each.result() for each in asking)
    assert {"day", "night"} == set(served)
    assert longest_s <= BOUND_S
