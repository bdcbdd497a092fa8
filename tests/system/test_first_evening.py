"""The first evening: two fresh hosts, three commands, and what these print, end in a chat."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.host import Host
from tests.lab.hosts import Lab
from tests.lab.llama_server import llama_server_seen_at
from tests.lab.models import TinyModel, make_model
from tests.system.conftest import Layers
from tests.system.mesh import (
    AGENT,
    LLAMA_FOLDER,
    MODELS_FOLDER,
    Mesh,
    Reply,
    drop_in,
    llama_server_of,
)

MODELS = "/var/lib/rolemesh/models"
SAYS = "the code of the coder"


@pytest.fixture(scope="module", params=["trixie", "bookworm"])
def suite(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@dataclass(slots=True)
class Evening:
    """Two hosts with our packages and nothing else, and what was learnt on the way."""

    mesh: Mesh
    client_key: str = ""

    def chat(self, role: str) -> Reply:
        """Chat as the client does who was given the key."""
        connection = self.mesh.connect()
        try:
            body = {"model": role, "messages": [{"role": "user", "content": "Hello"}]}
            field = {"Authorization": f"Bearer {self.client_key}"}
            return connection.ask("POST", "/v1/chat/completions", body, field)
        finally:
            connection.close()


@pytest.fixture(scope="module")
def evening(
    lab: Lab,
    suite: str,
    installed_root: Callable[[str], Layers],
    binds: Mapping[str, Path],
) -> Evening:
    gateway, node = lab.boot(["gw", "box"], root=installed_root(suite), binds=binds)
    # As long as the distribution has no llama-server in $PATH.
    _, program = llama_server_seen_at(LLAMA_FOLDER)
    drop_in(node, "node", "20-llama-server.yaml", {"llama_server": {"path": str(program)}})
    node.run("systemctl", "reload", AGENT)
    return Evening(mesh=Mesh(lab=lab, gateway=gateway, node=node))


def typed(host: Host, lines: str, *, check: bool = True) -> tuple[str, str, int]:
    """Type lines as they were printed; root needs no sudo. Returns stdout, stderr and status."""
    script = f'set -e\nsudo() {{ "$@"; }}\n{lines}\n'
    done = host.run("sh", text=script, check=check)
    return done.stdout, done.stderr, done.returncode


def files(host: Host) -> list[str]:
    return sorted(host.run("find", "/etc/rolemesh").stdout.split())


def test_a_closed_gateway_says_how_it_is_opened_and_that_is_enough(evening: Evening) -> None:
    gateway, node = evening.mesh.gateway, evening.mesh.node
    before = files(node)
    for agent in ("", " --agent left"):
        line = f"rolemeshctl node join http://gw:8000 --token rm-x{agent}"
        _, said, status = typed(node, line, check=False)
        assert (status, files(node)) == (3, before)
        assert "nobody listens at http://gw:8000" in said
    _, said, status = typed(gateway, "rolemeshctl gateway invite", check=False)
    assert status == 1
    assert "this gateway listens on 127.0.0.1:8000 only" in said
    begin, end = said.index("# From then on"), said.index("rolemeshctl: this gateway")
    printed, _, _ = typed(gateway, said[begin:end])
    evening.client_key = printed.split()[0]
    assert evening.client_key.startswith("rm-")


def test_an_invited_host_joins_with_the_line_that_was_printed(evening: Evening) -> None:
    gateway, node = evening.mesh.gateway, evening.mesh.node
    line, _, _ = typed(gateway, "rolemeshctl gateway invite --name gpubox")
    assert line.startswith(f"sudo rolemeshctl node join http://{gateway.address}:8000 --token rm-")
    said, _, _ = typed(node, line)
    url = f"http://{node.address}:8100"
    assert said == f"gpubox has joined http://{gateway.address}:8000, which reaches it at {url}\n"
    told = json.loads(gateway.run("rolemeshctl", "nodes", "--json").stdout)
    assert [(each["node_id"], each["state"]) for each in told["nodes"]] == [("gpubox", "live")]


def test_only_the_agent_can_read_the_key(evening: Evening) -> None:
    node = evening.mesh.node
    for path, group in (
        ("node.key", "_rolemesh-agent"),
        ("node.d/50-join.yaml", "_rolemesh-llama"),
    ):
        shown = node.run("stat", "--format=%U %G %a", f"/etc/rolemesh/{path}").stdout
        assert shown == f"root {group} 640\n"
    for user, may in (("_rolemesh-agent", True), ("_rolemesh-llama", False), ("nobody", False)):
        done = node.run("cat", "/etc/rolemesh/node.key", user=user, check=False)
        assert (done.returncode == 0) == may, user


def test_a_model_out_of_sight_is_refused_with_the_drop_in_that_shows_it(evening: Evening) -> None:
    node = evening.mesh.node
    path = make_model(TinyModel(name="hidden"))
    node.run("cp", f"{MODELS_FOLDER}/{path.name}", "/home/hidden.gguf")
    before = files(node)
    add = "rolemeshctl model add /home/hidden.gguf --role hidden"
    _, said, status = typed(node, add, check=False)
    assert (status, files(node)) == (1, before)
    assert "/home/hidden.gguf is out of the sight of rolemesh-llama@cpu0.service" in said
    begin, end = said.index("sudo mkdir"), said.index("or, for good")
    typed(node, said[begin:end])
    added, _, _ = typed(node, add)
    assert "hidden serves hidden on gpubox" in added
    assert evening.chat("hidden").status == 200
    typed(node, "rolemeshctl model remove hidden")
    assert files(node) == before


def test_a_model_that_is_added_answers(evening: Evening) -> None:
    node = evening.mesh.node
    path = make_model(TinyModel(name="coder", says=SAYS))
    node.run("cp", f"{MODELS_FOLDER}/{path.name}", f"{MODELS}/coder.gguf")
    said, _, _ = typed(node, f"rolemeshctl model add {MODELS}/coder.gguf --role coder")
    assert "coder: needs " in said
    assert "coder serves coder on gpubox: /etc/rolemesh/node.d/60-coder.yaml" in said
    assert f"curl http://{evening.mesh.gateway.address}:8000/v1/chat/completions" in said
    assert evening.chat("coder").says == SAYS
    listed = node.run("rolemeshctl", "model", "list").stdout
    assert "coder" in listed
    assert "ready" in listed


def test_what_is_removed_is_gone_and_what_is_pinned_stays(evening: Evening) -> None:
    node = evening.mesh.node
    typed(node, "rolemeshctl model remove coder")
    assert evening.chat("coder").status in (404, 503)
    add = f"rolemeshctl model add {MODELS}/coder.gguf --role coder --pin cpu0"
    typed(node, add)
    assert evening.chat("coder").says == SAYS
    node.run("systemctl", "restart", AGENT)
    again, said, status = typed(node, add, check=False)
    assert (again, status) == ("", 1)
    assert "there is a model coder already, at /etc/rolemesh/node.d/60-coder.yaml" in said


def test_what_the_agent_refuses_is_taken_back(evening: Evening) -> None:
    node = evening.mesh.node
    before = files(node)
    refusing = f"/etc/systemd/system/{AGENT}.d/refuse.conf"
    node.put(refusing, "[Service]\nExecReload=\nExecReload=/bin/false\n")
    node.run("systemctl", "daemon-reload")
    add = f"rolemeshctl model add {MODELS}/coder.gguf --role other --id other"
    _, said, status = typed(node, add, check=False)
    assert (status, files(node)) == (1, before)
    assert f"{AGENT} refuses its new configuration: nothing was changed" in said
    node.run("rm", refusing)
    node.run("systemctl", "daemon-reload")


def test_what_only_root_can_read_does_not_end_the_agent(evening: Evening) -> None:
    gateway, node = evening.mesh.gateway, evening.mesh.node
    line, _, _ = typed(gateway, "rolemeshctl gateway invite")
    node.put("/root/secret", "rm-secret\n", mode=0o600)
    bad = drop_in(node, "node", "55-bad.yaml", "auth: {clients: {x: {key_file: /root/secret}}}\n")
    before = files(node)
    agent = node.show(AGENT, "MainPID")
    again = f"{line.strip()} --name gpubox --listen 0.0.0.0:8105"
    _, said, status = typed(node, again, check=False)
    assert (status, files(node)) == (1, before)
    assert "/root/secret cannot be read: Permission denied" in said
    assert f"{AGENT} refuses its new configuration: nothing was changed" in said
    assert node.show(AGENT, "MainPID") == agent
    node.run("rm", bad)


def test_a_node_that_joins_again_moves_and_its_models_stay(evening: Evening) -> None:
    gateway, node = evening.mesh.gateway, evening.mesh.node
    assert evening.chat("coder").status == 200
    server = llama_server_of(node, "cpu0")
    line, _, _ = typed(gateway, "rolemeshctl gateway invite")
    said, _, _ = typed(node, f"{line.strip()} --name gpubox --listen 0.0.0.0:8105")
    assert said.endswith(f"which reaches it at http://{node.address}:8105\n")
    assert evening.chat("coder").says == SAYS
    assert llama_server_of(node, "cpu0") == server
