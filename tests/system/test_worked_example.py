"""The worked example, typed as docs/example-multi-node.md has it: two hosts, three agents, three roles."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pytest

from tests.lab.host import Host
from tests.lab.hosts import Lab
from tests.lab.llama_server import llama_server_seen_at
from tests.lab.models import TinyModel, make_model
from tests.lab.poll import eventually_sync
from tests.system.conftest import InstalledRoot
from tests.system.gpu_hosts import BootGpuHost, GpuHost, shown_nodes
from tests.system.mesh import LLAMA_FOLDER, MODELS_FOLDER, SEE_GPUS, Mesh, Reply, llama_servers

PAGE = Path(__file__).parents[2] / "docs" / "example-multi-node.md"
MODELS = "/var/lib/rolemesh/models"
ADDRESSES = {"desk": "10.0.0.1", "twin": "10.0.0.7"}
WHERE = {"planner": "twin-left", "writer": "twin-right", "critic": "desk"}
LARGE_MIB = 18_000


def commands(section: str) -> Iterator[str]:
    """Yield what a section of the page has people type, one command at a time."""
    text = PAGE.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        lines = iter(block.splitlines())
        for line in lines:
            if not line.startswith("$ "):
                continue  # what is printed
            command = [line.removeprefix("$ ")]
            if "<<'END'" in line:
                command += [*takewhile(lambda each: each != "END", lines), "END"]
            yield "\n".join(command)


@dataclass(slots=True)
class Example:
    """The two hosts, and what was learnt on the way."""

    mesh: Mesh
    twin: GpuHost
    tokens: dict[str, str]
    client_key: str = ""

    def type(self, host: Host, section: str) -> str:
        """Type a section's commands on a host, with its addresses and tokens; return the output."""
        return "".join(self._typed(host, command) for command in commands(section))

    def chat(self, role: str) -> Reply:
        """Chat as the client does who was given the key."""
        connection = self.mesh.connect()
        try:
            body = {"model": role, "messages": [{"role": "user", "content": "Hello"}]}
            field = {"Authorization": f"Bearer {self.client_key}"}
            return connection.ask("POST", "/v1/chat/completions", body, field)
        finally:
            connection.close()

    def nodes(self) -> Mapping[str, str]:
        """Return the state of each node, as the gateway sees it."""
        told = json.loads(self.mesh.gateway.run("rolemeshctl", "nodes", "--json").stdout)
        return {each["node_id"]: each["state"] for each in told["nodes"]}

    def _typed(self, host: Host, command: str) -> str:
        for each in (self.mesh.gateway, self.twin.host):
            command = command.replace(ADDRESSES[each.name], each.address)
        if "rm-…" in command:
            (name,) = re.findall(r"--name (\S+)", command)
            command = command.replace("rm-…", self.tokens[name])
        said = host.run("sh", text=f'set -e\nsudo() {{ "$@"; }}\n{command}\n').stdout
        if "gateway invite" in command:
            (name,) = re.findall(r"--name (\S+)", command)
            (self.tokens[name],) = re.findall(r"--token (\S+)", said)
        if "key add" in command:
            self.client_key = said.split()[0]
        return said


@pytest.fixture(scope="module")
def example(
    lab: Lab,
    installed_root: InstalledRoot,
    boot_gpu_host: BootGpuHost,
    binds: Mapping[str, Path],
) -> Example:
    """Return two hosts with our packages, a llama-server in $PATH, and the three models."""
    twin = boot_gpu_host("twin", gpus=2, memory={f"{role}.gguf": LARGE_MIB for role in WHERE})
    (desk,) = lab.boot(["desk"], root=installed_root("trixie"), binds=binds)
    _, program = llama_server_seen_at(LLAMA_FOLDER)
    for host in (desk, twin.host):
        host.run("ln", "-s", str(program), "/usr/local/bin/llama-server")
        for role in WHERE:
            made = make_model(TinyModel(name=role, says=f"here is the {role}"))
            host.run("cp", f"{MODELS_FOLDER}/{made.name}", f"{MODELS}/{role}.gguf")
    twin.host.put("/etc/systemd/system/rolemesh-node-agent@.service.d/gpus.conf", SEE_GPUS)
    twin.host.run("systemctl", "daemon-reload")
    mesh = Mesh(lab=lab, gateway=desk, node=twin.host)
    example = Example(mesh=mesh, twin=twin, tokens={})
    for host, section in (
        (desk, "The gateway"),
        (desk, "The second host"),
        (twin.host, "Two agents"),
    ):
        example.type(host, section)
    return example


def test_what_the_page_has_typed_ends_in_three_answers(example: Example) -> None:
    assert example.nodes() == {"twin-left": "live", "twin-right": "live", "desk": "live"}
    for role, node in WHERE.items():
        reply = example.chat(role)
        assert reply.says == f"here is the {role}"
        assert reply.headers["x-rolemesh-node"] == node
    shown = example.mesh.gateway.run("rolemeshctl", "aliases").stdout
    assert all(f"{node}:{role}" in shown for role, node in WHERE.items())


def test_each_of_the_two_agents_has_a_gpu_of_its_own(example: Example) -> None:
    host, uuids = example.twin.host, example.twin.uuids
    running = llama_servers(host)
    assert {unit.split("@")[1] for unit in running.values()} == {"gpu0.service", "gpu1.service"}
    for pid, unit in running.items():
        environment = host.run("cat", f"/proc/{pid}/environ").stdout.split("\0")
        uuid = uuids[0] if "gpu0" in unit else uuids[1]
        assert f"CUDA_VISIBLE_DEVICES={uuid}" in environment


def test_an_agent_is_restarted_and_drained_apart_from_the_other(example: Example) -> None:
    host, desk = example.twin.host, example.mesh.gateway
    before = llama_servers(host)
    host.run("systemctl", "restart", "rolemesh-node-agent@left.service")
    desk.run("rolemeshctl", "drain", "twin-right", "--wait")
    assert example.chat("writer").status == 503
    eventually_sync(lambda: example.chat("planner").status == 200, what="the planner is back")
    assert llama_servers(host) == before
    desk.run("rolemeshctl", "undrain", "twin-right")
    assert example.chat("writer").says == "here is the writer"


def test_a_gpu_that_the_other_has_is_left_to_it(example: Example) -> None:
    host, unit = example.twin.host, "rolemesh-node-agent@left.service"
    more = "/etc/rolemesh/node-left.d/70-more.yaml"
    host.put(more, "gpus: [0, 1]\ninstances: {gpu1: {model: planner}}\n", mode=0o640)
    host.run("chgrp", "_rolemesh-llama", more)
    host.run("systemctl", "reload", unit)
    told = "gpu1 is used by the agent of node twin-right"
    eventually_sync(
        lambda: (
            told in shown_nodes(example.mesh)
            and told in host.show(unit, "StatusText")
            and told in host.journal_text(f"--unit={unit}")
        ),
        what="it says whose the GPU is",
    )
    assert example.chat("planner").says == "here is the planner"
    assert example.chat("writer").says == "here is the writer"
