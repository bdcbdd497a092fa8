"""A mesh of hosts: what is configured on them, and what a client elsewhere asks them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import yaml

from tests.lab.host import Host
from tests.lab.hosts import Lab
from tests.lab.llama_server import llama_server_seen_at
from tests.lab.models import TinyModel, make_model
from tests.lab.poll import eventually_sync

LLAMA_FOLDER = Path("/srv/llama")
MODELS_FOLDER = Path("/srv/models")
GPU_FOLDER = Path("/srv/gpus")
GATEWAY_PORT = 8000
AGENT_PORT = 8100
GATEWAY_UNIT = "rolemesh-gateway.service"
AGENT = "rolemesh-node-agent.service"
ENDLESS_TOKENS = 1 << 17  # more than anybody waits for
CLIENT_KEY = "key-of-the-client"
NODE_KEY = "key-of-the-node"
REQUEST_TIMEOUT_S = 60
READY_DEADLINE_S = 60

GATEWAY: Mapping[str, Any] = {
    "listen": {"host": "0.0.0.0"},
    "aliases": {"from_roles": True},
    "auth": {"client_api_keys": [CLIENT_KEY], "node_api_keys": [NODE_KEY]},
}


# For hosts without GPUs: a drop-in of a unit, not one of ours.
SEE_GPUS = f"""\
[Service]
Environment=LD_LIBRARY_PATH={GPU_FOLDER} FAKE_NVML={GPU_FOLDER}/gpus PYTHONPATH={GPU_FOLDER}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back: the body as text, and what it means if it is JSON."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def says(self) -> str:
        """The words of the model; fails unless the request succeeded."""
        assert self.status == 200, self.text
        content: str = self.json["choices"][0]["message"]["content"]
        return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A connection from the client's place to a daemon."""

    http: HTTPConnection

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send one request and read the whole reply."""
        self.send(method, path, body, headers)
        reply = self.http.getresponse()
        return Reply(
            status=reply.status,
            headers={name.lower(): value for name, value in reply.getheaders()},
            text=reply.read().decode(),
        )

    def send(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send one request."""
        data = None if body is None else json.dumps(body)
        everything = {"Authorization": f"Bearer {CLIENT_KEY}", **(headers or {})}
        self.http.request(method, path, data, everything)

    def stream(self, alias: str, **fields: Any) -> HTTPResponse:
        """Ask for a chat as a stream, and return it with its first event read."""
        body = {"model": alias, "messages": [{"role": "user", "content": "go"}], "stream": True}
        self.send("POST", "/v1/chat/completions", {**body, **fields})
        reply = self.http.getresponse()
        line = reply.readline()
        assert reply.status == 200, line + reply.read()
        assert line.startswith(b"data: {"), line
        return reply

    def close(self) -> None:
        self.http.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """A gateway, a node, and the client's place."""

    lab: Lab
    gateway: Host
    node: Host

    def connect(
        self,
        host: Host | None = None,
        port: int = GATEWAY_PORT,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Connection:
        """Connect from the client's place, to the gateway unless said otherwise."""
        host = host or self.gateway
        connection = HTTPConnection(host.address, port)
        connection.auto_open = 0  # of its own accord it would connect from this machine
        connection.sock = self.lab.network.connect(host.name, port, timeout_s=timeout_s)
        return Connection(http=connection)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """Ask the gateway on a connection of its own."""
        connection = self.connect()
        try:
            return connection.ask(method, path, body, headers)
        finally:
            connection.close()

    def chat(self, alias: str, *, request_id: str | None = None, **fields: Any) -> Reply:
        """Chat with whatever answers an alias."""
        body = {"model": alias, "messages": [{"role": "user", "content": "go"}], **fields}
        headers = {} if request_id is None else {"X-Request-Id": request_id}
        return self.ask("POST", "/v1/chat/completions", body, **headers)

    def ask_node(self, method: str, path: str, body: Any = None) -> Reply:
        """Ask the node's agent on a connection of its own."""
        connection = self.connect(self.node, AGENT_PORT)
        try:
            return connection.ask(method, path, body)
        finally:
            connection.close()

    def instances(self) -> dict[str, dict[str, Any]]:
        """Return the node's instances by name, as its agent shows them."""
        node = self.ask_node("GET", "/v1/node").json
        return {instance["instance"]: instance for instance in node["instances"]}

    def wait_for_state(self, instance: str, state: str, *, deadline_s: float = 60) -> None:
        """Wait until the agent shows an instance in a state."""

        def has_state() -> bool:
            return bool(self.instances()[instance]["state"] == state)

        eventually_sync(has_state, what=f"{instance} {state}", deadline_s=deadline_s)

    def usable(self) -> set[str]:
        """Return the aliases that the gateway can have answered."""
        return {model["id"] for model in self.ask("GET", "/v1/models").json["data"]}

    def wait_until_usable(self, alias: str) -> None:
        """Wait until an alias is listed."""
        what = f"{alias} is usable"
        eventually_sync(lambda: alias in self.usable(), what=what, deadline_s=READY_DEADLINE_S)


def drop_in(host: Host, program: str, name: str, tree: Mapping[str, Any] | str) -> str:
    """Write one file of `gateway.d` or `node.d`, as an administrator would; returns its path."""
    path = f"/etc/rolemesh/{program}.d/{name}"
    content = tree if isinstance(tree, str) else yaml.safe_dump(dict(tree), sort_keys=False)
    host.put(path, content, mode=0o640)
    group = "_rolemesh-gateway" if program == "gateway" else "_rolemesh-llama"
    host.run("chgrp", group, path)
    return path


def start_mesh(lab: Lab, gateway: Host, node: Host) -> Mesh:
    """Configure a gateway and a node, one file each, and start the daemon of each host."""
    start_gateway(gateway)
    start_agent(node, node_configuration(gateway))
    return Mesh(lab=lab, gateway=gateway, node=node)


def start_gateway(host: Host) -> None:
    """Configure a gateway, and start it and nothing else of ours."""
    drop_in(host, "gateway", "50-test.yaml", GATEWAY)
    _run_only(host, GATEWAY_UNIT, unused=AGENT)


def start_agent(host: Host, configuration: Mapping[str, Any]) -> None:
    """Configure a node agent that sees the host's fake GPUs, and start it and nothing else."""
    drop_in(host, "node", "50-test.yaml", configuration)
    host.put(f"/etc/systemd/system/{AGENT}.d/gpus.conf", SEE_GPUS)
    _run_only(host, AGENT, unused=GATEWAY_UNIT)


def _run_only(host: Host, unit: str, *, unused: str) -> None:
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "disable", "--now", unused)
    host.run("systemctl", "enable", unit)
    host.run("systemctl", "restart", unit)


def node_basics(gateway: Host) -> dict[str, Any]:
    """Return what every node of these tests is told, whatever it runs."""
    _, program = llama_server_seen_at(LLAMA_FOLDER)
    return {
        "listen": {"host": "0.0.0.0"},
        "auth": {"api_keys": [CLIENT_KEY]},
        "gateways": [{"url": f"http://{gateway.name}:{GATEWAY_PORT}", "api_key": NODE_KEY}],
        "llama_server": {"path": str(program)},
    }


def node_configuration(gateway: Host) -> dict[str, Any]:
    """Return what the node's one file says: a model for each GPU, and one for the CPU."""
    return {
        **node_basics(gateway),
        "models": [
            model("planner", says="the plan of the planner", parallel=2),
            model("coder", says="the code of the coder", parallel=4),
            model("poet", says="on and on", loop=True, context=ENDLESS_TOKENS),
        ],
        "instances": {
            "gpu0": {"model": "planner-gguf"},
            "gpu1": {"model": "coder-gguf"},
            "cpu0": {"model": "poet-gguf"},
        },
    }


def llama_unit(instance: str) -> str:
    """Return the name of an instance's unit."""
    return f"rolemesh-llama@{instance}.service"


def llama_servers(host: Host) -> dict[int, str]:
    """Return the llama-servers of a host: the unit of each by pid."""
    listed = host.run("ps", "-eo", "pid=,unit=,comm=").stdout.splitlines()
    rows = [line.split(maxsplit=2) for line in listed]
    return {int(pid): unit for pid, unit, command in rows if command == "llama-server"}


def llama_server_of(host: Host, instance: str) -> int:
    """Return the pid of an instance's llama-server; fails unless there is exactly one."""
    unit = llama_unit(instance)
    (pid,) = [pid for pid, its_unit in llama_servers(host).items() if its_unit == unit]
    return pid


def model(role: str, *, says: str, parallel: int = 1, **options: Any) -> dict[str, Any]:
    """Return one entry of a node's `models`, and make the model."""
    path = make_model(TinyModel(name=role, says=says, **options))
    return {
        "model_id": f"{role}-gguf",
        "path": str(MODELS_FOLDER / path.name),
        "roles": [role],
        "context_size": options.get("context", 1024),
        "parallel": parallel,
    }
