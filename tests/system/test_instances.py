"""Instances on a host: active when they answer, back after a crash, never the agent's victims."""

import time
from collections.abc import Callable

import pytest

from tests.lab.llama_server import llama_server_seen_at
from tests.lab.poll import eventually_sync
from tests.system.mesh import (
    AGENT,
    LLAMA_FOLDER,
    Mesh,
    drop_in,
    llama_server_of,
    llama_servers,
    llama_unit,
)

CODER = llama_unit("gpu1")
WATCHDOG_S = 10
MARGIN_S = 5

SLOW_LLAMA_SERVER = """\
#!/bin/sh
sleep 2
exec {program} "$@"
"""

# Asks for a token at the moment the unit is first seen active; prints all states it saw, in order.
PROBE = """\
import json, socket, subprocess, sys, time
unit, path = sys.argv[1:]
states, end = [], time.monotonic() + 60
while states[-1:] != ["active"] and time.monotonic() < end:
    state = subprocess.run(
        ["systemctl", "is-active", unit], capture_output=True, text=True
    ).stdout.strip()
    if states[-1:] != [state]:
        states.append(state)
body = json.dumps({"prompt": "go", "n_predict": 1})
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(path)
    head = f"POST /completion HTTP/1.0\\r\\nHost: x\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
    connection.sendall((head + body).encode())
    status = connection.recv(4096).split(b" ", 2)[1].decode()
print(*states, status)
"""


@pytest.fixture(scope="module", params=["trixie", "bookworm"])
def suite(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def coder_pid(mesh: Mesh) -> int:
    """Return the pid of the llama-server of gpu1, which is ready."""
    mesh.node.run("systemctl", "start", CODER)
    mesh.wait_for_state("gpu1", "ready")
    return llama_server_of(mesh.node, "gpu1")


def agent_pid(mesh: Mesh) -> str:
    return mesh.node.show(AGENT, "MainPID")


def test_a_unit_is_not_active_before_it_answers(mesh: Mesh) -> None:
    path = "/usr/local/bin/slow-llama-server"
    _, program = llama_server_seen_at(LLAMA_FOLDER)
    mesh.node.put(path, SLOW_LLAMA_SERVER.format(program=program), mode=0o755)
    slow = drop_in(mesh.node, "node", "60-slow.yaml", {"llama_server": {"path": path}})
    mesh.node.run("systemctl", "stop", CODER)
    mesh.node.run("systemctl", "start", "--no-block", CODER)
    probe = ("python3", "-c", PROBE, CODER, "/run/rolemesh-llama/gpu1/http.sock")
    seen = mesh.node.run(*probe, timeout_s=90).stdout.split()
    assert seen[-2:] == ["active", "200"]
    assert set(seen[:-2]) <= {"inactive", "activating"}
    assert "activating" in seen
    mesh.node.run("rm", slow)
    mesh.node.run("systemctl", "restart", CODER)


def test_a_killed_llama_server_is_back_by_itself(mesh: Mesh, coder_pid: int) -> None:
    mesh.node.run("kill", "-9", str(coder_pid))
    eventually_sync(lambda: coder_pid not in llama_servers(mesh.node), what="the victim is gone")
    assert mesh.chat("coder").says == "the code of the coder"  # waits, and gets no error
    assert llama_server_of(mesh.node, "gpu1") != coder_pid


def test_a_llama_server_that_hangs_is_restarted_by_the_watchdog(mesh: Mesh, coder_pid: int) -> None:
    began = time.monotonic()
    mesh.node.run("kill", "-STOP", str(coder_pid))
    eventually_sync(
        lambda: coder_pid not in llama_servers(mesh.node),
        what="the victim is gone",
        deadline_s=WATCHDOG_S + MARGIN_S,
    )
    assert mesh.chat("coder").says == "the code of the coder"
    assert time.monotonic() - began <= WATCHDOG_S + MARGIN_S


def restart_agent(mesh: Mesh) -> None:
    mesh.node.run("systemctl", "restart", AGENT)


def kill_agent(mesh: Mesh) -> None:
    victim = agent_pid(mesh)
    mesh.node.run("kill", "-9", victim)
    eventually_sync(
        lambda: mesh.node.show(AGENT, "ActiveState") == "active" and agent_pid(mesh) != victim,
        what="a new agent",
    )


def reexecute_systemd(mesh: Mesh) -> None:
    mesh.node.run("systemctl", "daemon-reexec")


def restart_dbus(mesh: Mesh) -> None:
    mesh.node.run("systemctl", "restart", "dbus.service")


def upgrade_packages(mesh: Mesh) -> None:
    mesh.node.run("sh", "-c", "dpkg --install /srv/packages/*.deb")


DISTURBANCES: list[Callable[[Mesh], None]] = [
    restart_agent,
    kill_agent,
    reexecute_systemd,
    restart_dbus,
    upgrade_packages,
]


@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_llama_servers_go_on_whatever_happens_around_them(
    mesh: Mesh, coder_pid: int, disturb: Callable[[Mesh], None]
) -> None:
    mesh.node.run("systemctl", "stop", llama_unit("gpu0"), llama_unit("cpu0"))
    disturb(mesh)
    mesh.wait_for_state("gpu1", "ready")
    mesh.wait_until_usable("coder")
    assert mesh.chat("coder").says == "the code of the coder"
    assert llama_server_of(mesh.node, "gpu1") == coder_pid
    # And the agent is still told of what happens, and heard when it wants something.
    mesh.node.run("systemctl", "stop", CODER)
    mesh.wait_for_state("gpu1", "stopped")
    mesh.node.run("systemctl", "start", CODER)
    mesh.wait_for_state("gpu1", "ready")
    assert mesh.chat("planner").says == "the plan of the planner"
    assert all(unit.startswith("rolemesh-llama@") for unit in llama_servers(mesh.node).values())


def test_a_llama_unit_has_no_network(mesh: Mesh, coder_pid: int) -> None:
    interfaces = mesh.node.run("cat", f"/proc/{coder_pid}/net/dev").stdout.splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    listening = mesh.node.run("cat", f"/proc/{coder_pid}/net/tcp").stdout.splitlines()[1:]
    assert listening == []
