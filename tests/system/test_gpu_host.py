"""A host with four GPUs: who is loaded where, who has to go for whom, and who is refused."""

from typing import Any

import pytest

from tests.lab.hosts import Lab
from tests.lab.poll import eventually_sync
from tests.system.conftest import InstalledRoot
from tests.system.gpu_hosts import (
    GPU_MIB,
    LOAD_DEADLINE_S,
    RELEASE_S,
    BootGpuHost,
    Clients,
    agent_lines,
    memory_rules,
    pids,
    place_of,
    reconfigure,
    running,
    sized_model,
    unload_all,
)
from tests.system.mesh import Mesh, llama_server_of, llama_unit, start_gateway

LARGE_MIB = 18_000  # one of them on a GPU
SMALL_MIB = 2_500  # two of them beside a large one
WIDE_MIB = 40_000  # more than one GPU has
GIANT_MIB = 5 * GPU_MIB
LARGE = ("planner", "coder", "critic", "writer", "judge")
SMALL = ("ear", "eye", "nose")
IDLE_S = 2


def all_models() -> list[dict[str, Any]]:
    return [
        *(sized_model(role, LARGE_MIB) for role in LARGE),
        *(sized_model(role, SMALL_MIB) for role in SMALL),
        sized_model("wide", WIDE_MIB),
        sized_model("giant", GIANT_MIB),
        sized_model("fleeting", SMALL_MIB, idle_unload_s=IDLE_S),
    ]


@pytest.fixture(scope="module")
def loaded_mesh(lab: Lab, installed_root: InstalledRoot, boot_gpu_host: BootGpuHost) -> Mesh:
    """Return a gateway, and the node that has the models."""
    (gateway,) = lab.boot(["gw"], root=installed_root("trixie"))
    start_gateway(gateway)
    rig = boot_gpu_host("rig", gpus=4, memory=memory_rules(all_models()))
    rig.run_agent(gateway, {"models": all_models()})
    mesh = Mesh(lab=lab, gateway=gateway, node=rig.host)
    mesh.wait_until_usable("planner")
    return mesh


@pytest.fixture
def mesh(loaded_mesh: Mesh) -> Mesh:
    """Return the mesh with nothing loaded."""
    unload_all(loaded_mesh)
    return loaded_mesh


def load(mesh: Mesh, *roles: str) -> None:
    """Have models loaded by asking each one, in this order."""
    for role in roles:
        assert mesh.chat(role).says == f"here is the {role}"


def devices_of(mesh: Mesh, role: str) -> list[str]:
    devices: list[str] = mesh.instances()[place_of(mesh, role)]["devices"]
    return devices


def test_four_gpus_serve_four_models_side_by_side(mesh: Mesh) -> None:
    load(mesh, "planner", "coder", "critic", "writer")
    assert len(running(mesh)) == 4
    assert len({tuple(each["devices"]) for each in mesh.instances().values()}) == 4
    before = pids(mesh)
    load(mesh, "writer", "coder", "planner", "critic")
    assert pids(mesh) == before


def test_a_fifth_model_displaces_the_one_that_nobody_has_used_for_longest(mesh: Mesh) -> None:
    load(mesh, "planner", "coder", "critic", "writer", "planner", "critic", "writer")
    before, victim = pids(mesh), place_of(mesh, "coder")
    with Clients(mesh) as clients:
        judged = clients.chat("judge")
        waiting = eventually_sync(
            lambda: waits_for_memory(mesh, victim),
            what="the start waits for the memory",
            deadline_s=LOAD_DEADLINE_S,
        )
        assert judged.result().says == "here is the judge"
    assert "17.6 GiB" in waiting
    assert place_of(mesh, "judge") == victim
    after = pids(mesh)
    assert {name: pid for name, pid in before.items() if name != victim} == {
        name: pid for name, pid in after.items() if name != victim
    }
    for words in ("ready -> draining (coder-gguf): makes room for judge-gguf", "waits for memory"):
        assert any(f"{victim}: {words}" in line for line in agent_lines(mesh.node)), words
    assert stopped_before_start_s(mesh, victim) >= RELEASE_S / 2


def waits_for_memory(mesh: Mesh, instance: str) -> str:
    """Return what the agent says of an instance whose start waits for memory, else ""."""
    shown = mesh.instances()[instance]
    words = f"{shown['reason']} {shown['status']}"
    return words if shown["state"] == "starting" and "waits for memory" in words else ""


def stopped_before_start_s(mesh: Mesh, instance: str) -> float:
    """Return how long a unit lay still between its last stop and its last start."""
    unit = llama_unit(instance)
    stamps = [
        int(mesh.node.show(unit, name))
        for name in ("InactiveEnterTimestampMonotonic", "InactiveExitTimestampMonotonic")
    ]
    return (stamps[1] - stamps[0]) / 1e6


def test_a_model_that_fits_nowhere_is_refused_with_numbers_and_nothing_is_stopped(
    mesh: Mesh,
) -> None:
    load(mesh, "planner", "coder", "critic", "writer")
    before = pids(mesh)
    refused = mesh.chat("giant")
    assert refused.status == 503
    listed = mesh.ask("GET", "/v1/models").json["rolemesh"]["unavailable_models"]
    (reason,) = [each["reason"] for each in listed if each["id"] == "giant"]
    for text in (refused.text, reason):
        assert "120.0 GiB" in text  # what it needs
        assert all(f"gpu{number}" in text for number in range(4))
        assert "24.0 GiB" in text  # what there is
    plan = mesh.node.run("rolemeshctl", "node", "plan", "giant-gguf", check=False).stdout
    assert "120.0 GiB" in plan
    assert pids(mesh) == before


def test_small_models_share_a_gpu_with_others(mesh: Mesh) -> None:
    load(mesh, "planner", "coder", "critic", "writer")
    before = pids(mesh)
    load(mesh, *SMALL)
    after = pids(mesh)
    assert before.items() <= after.items()
    assert len(after) == 7
    large = {tuple(devices_of(mesh, role)) for role in ("planner", "coder", "critic", "writer")}
    assert {tuple(devices_of(mesh, role)) for role in SMALL} <= large


def test_a_model_too_large_for_one_gpu_runs_over_two(mesh: Mesh) -> None:
    load(mesh, "wide")
    devices = devices_of(mesh, "wide")
    assert len(set(devices)) == 2
    pid = llama_server_of(mesh.node, place_of(mesh, "wide"))
    environment = mesh.node.run("cat", f"/proc/{pid}/environ").stdout.split("\0")
    assert f"CUDA_VISIBLE_DEVICES={','.join(devices)}" in environment
    load(mesh, "planner", "coder")  # they leave it alone
    assert not set(devices) & {*devices_of(mesh, "planner"), *devices_of(mesh, "coder")}
    assert llama_server_of(mesh.node, place_of(mesh, "wide")) == pid


def test_a_model_that_nobody_uses_is_unloaded_after_its_time(mesh: Mesh) -> None:
    load(mesh, "planner", "fleeting")
    eventually_sync(
        lambda: set(running(mesh).values()) == {"planner-gguf"},
        what="the idle model is unloaded and the other is not",
        deadline_s=LOAD_DEADLINE_S,
    )
    words = "(fleeting-gguf): nobody has used it for a while"
    assert any(words in line for line in agent_lines(mesh.node))


def test_a_warm_model_is_loaded_before_anybody_asks(mesh: Mesh) -> None:
    reconfigure(
        mesh, "60-warm.yaml", {"models": [{**sized_model("critic", LARGE_MIB), "warm": True}]}
    )
    try:
        eventually_sync(
            lambda: "critic-gguf" in running(mesh).values(),
            what="the warm model is there",
            deadline_s=LOAD_DEADLINE_S,
        )
    finally:
        reconfigure(mesh, "60-warm.yaml", None)


def test_what_is_pinned_goes_for_nobody(mesh: Mesh) -> None:
    load(mesh, "planner", "coder", "critic", "writer")
    before = pids(mesh)
    for instance in before:
        mesh.node.run("rolemeshctl", "pin", instance)
    refused = mesh.chat("judge")
    assert refused.status == 503
    assert all(f"{name}: pinned" in refused.text for name in before)
    assert pids(mesh) == before
    victim = place_of(mesh, "planner")
    mesh.node.run("rolemeshctl", "unpin", victim)
    mesh.wait_until_usable("judge")
    load(mesh, "judge")
    assert place_of(mesh, "judge") == victim
    for instance in set(before) - {victim}:
        mesh.node.run("rolemeshctl", "unpin", instance)
