"""What a request for a model that is not loaded waits for, with systemd, beside llama-server."""

import json
from pathlib import Path

import pytest

from tests.lab import cold_start
from tests.lab.llama_server import llama_server_seen_at
from tests.system.mesh import (
    AGENT,
    CLIENT_KEY,
    LLAMA_FOLDER,
    Mesh,
    drop_in,
    llama_unit,
    model,
    node_configuration,
)

BOUND_S = 0.3
ROUNDS = 5
TRIES = 10
ROLES = ("sleeper", "dozer")
SCRIPT = "/usr/local/lib/cold_start.py"
UNIT = llama_unit("cpu0")


def first_token(mesh: Mesh, role: str) -> float:
    connection = mesh.connect().http
    try:
        return cold_start.seconds_to_first_token(connection.sock, role, key=CLIENT_KEY)
    finally:
        connection.close()


def by_itself(mesh: Mesh, what: str, *words: str) -> list[float]:
    """Measure llama-server alone on the node, as the user that RoleMesh runs it as."""
    _, program = llama_server_seen_at(LLAMA_FOLDER)
    command = ("python3", SCRIPT, what, str(program), *words)
    taken: list[float] = json.loads(mesh.node.run(*command, user="_rolemesh-llama").stdout)
    return taken


def stop(mesh: Mesh) -> None:
    mesh.node.run("systemctl", "stop", UNIT)
    mesh.wait_for_state("cpu0", "stopped")


@pytest.fixture
def paths(mesh: Mesh) -> list[str]:
    """Give the node two models that take turns on its CPU; return where they are."""
    models = [model(role, says="one two") for role in ROLES]
    tree = {**node_configuration(mesh.gateway), "models": models, "instances": {"cpu0": {}}}
    drop_in(mesh.node, "node", "50-test.yaml", tree)
    mesh.node.run("systemctl", "restart", AGENT)
    for role in ROLES:
        mesh.wait_until_usable(role)
    mesh.node.put(SCRIPT, Path(cold_start.__file__).read_text())
    return [each["path"] for each in models]


@pytest.mark.timeout(300)  # with a busy machine's tries
def test_a_cold_model_answers_soon_after_llama_server_itself_would(
    mesh: Mesh, paths: list[str]
) -> None:
    first_token(mesh, ROLES[0])
    cold: list[float] = []
    plain: list[float] = []
    overheads: list[float] = []
    while not overheads or (overheads[-1] > BOUND_S and len(overheads) < TRIES):
        cold, plain = [], []
        for _ in range(ROUNDS):
            stop(mesh)
            cold.append(first_token(mesh, ROLES[0]))
            plain += by_itself(mesh, "plain", paths[0], "1")
        overheads.append(cold_start.overhead_s(cold, plain))
    switched = [first_token(mesh, role) for _ in range(ROUNDS) for role in reversed(ROLES)]
    cold_start.show(
        {
            "RoleMesh, nothing loaded": cold,
            "llama-server": plain,
            "RoleMesh, another model to be stopped first": switched,
            "llama-server's router, another model loaded": by_itself(
                mesh, "router", *paths, str(ROUNDS)
            ),
        }
    )
    assert overheads[-1] <= BOUND_S, f"longer than llama-server itself, in s: {overheads}"
