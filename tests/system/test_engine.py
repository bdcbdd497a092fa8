"""Instances started by hand: what their llama-server may be told, and where that is read from."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.lab.host import Host
from tests.lab.hosts import Lab
from tests.lab.llama_server import llama_server_seen_at
from tests.system.mesh import AGENT, LLAMA_FOLDER, drop_in, llama_server_of, llama_unit, model

GPU0 = llama_unit("gpu0")
OTHER = "/etc/rolemesh/node-b.d"

# Has a prompt of 200 words answered; prints how many tokens were read, not taken from the cache.
READ = """\
import json, socket
body = json.dumps({"prompt": "go see " * 100, "n_predict": 1})
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect("/run/rolemesh-llama/gpu0/http.sock")
    head = f"POST /completion HTTP/1.0\\r\\nHost: x\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
    connection.sendall((head + body).encode())
    reply = b"".join(iter(lambda: connection.recv(65536), b""))
print(json.loads(reply.partition(b"\\r\\n\\r\\n")[2])["timings"]["prompt_n"])
"""


@pytest.fixture(scope="module")
def host(lab: Lab, installed_root: Callable[[str], Any], binds: Mapping[str, Path]) -> Host:
    """Return a host without an agent."""
    (host,) = lab.boot(["box"], root=installed_root("trixie"), binds=binds)
    host.run("systemctl", "disable", "--now", AGENT)
    return host


@pytest.fixture
def node(host: Host) -> Iterator[Host]:
    """Return the host; what runs there ends with the test."""
    yield host
    host.run("systemctl", "stop", "rolemesh-llama.target", "rolemesh-llama@*")
    host.run("systemctl", "reset-failed")
    host.run("rm", "-rf", OTHER)


def configuration(role: str, **fields: Any) -> dict[str, Any]:
    _, program = llama_server_seen_at(LLAMA_FOLDER)
    return {
        "llama_server": {"path": str(program)},
        "models": [{**model(role, says=f"words of the {role}"), **fields}],
        "instances": {"gpu0": {"model": f"{role}-gguf"}},
    }


def configure_other(node: Host, role: str) -> None:
    """Give a second agent's directory what runs on gpu0, and the first one's nothing."""
    drop_in(node, "node", "50-test.yaml", {**configuration("planner"), "instances": {}})
    node.run("install", "-d", "-m", "0750", "-g", "_rolemesh-llama", OTHER)
    node.put(f"{OTHER}/50-test.yaml", json.dumps(configuration(role)), mode=0o640)
    node.run("chgrp", "_rolemesh-llama", f"{OTHER}/50-test.yaml")


def refusal(node: Host) -> str:
    """Return why the instance is not started."""
    assert node.run("systemctl", "start", GPU0, check=False).returncode != 0
    assert node.show(GPU0, "ExecMainStatus") == "78"
    return node.show(GPU0, "StatusText")


def test_what_the_installed_build_does_not_know_is_refused_with_its_place(node: Host) -> None:
    path = drop_in(
        node, "node", "50-test.yaml", configuration("planner", args=["--flsh-attn", "on"])
    )
    text = refusal(node)
    assert text.startswith(f"{path}:")
    assert "models.planner-gguf.args: llama-server " in text
    assert text.endswith(' does not know --flsh-attn; did you mean "--flash-attn"?')


def test_what_runs_is_told_to_the_agent_and_remembered(node: Host) -> None:
    drop_in(node, "node", "50-test.yaml", configuration("planner"))
    node.run("systemctl", "start", GPU0)
    path = "/run/rolemesh-llama/gpu0/server.json"
    told = node.run("runuser", "-u", "_rolemesh-agent", "-g", "_rolemesh-llama", "--", "cat", path)
    facts = json.loads(told.stdout)
    assert facts["server_pid"] == llama_server_of(node, "gpu0")
    assert facts["build"]
    answers = node.run("sh", "-c", "cat /var/cache/rolemesh/llama/llama-server-*.json").stdout
    assert json.loads(answers)["version"].startswith("version: ")
    node.run("systemctl", "stop", GPU0)
    assert node.run("test", "-e", path, check=False).returncode != 0


def test_the_directory_that_has_the_instance_is_the_one_it_runs_by(node: Host) -> None:
    configure_other(node, "coder")
    node.run("systemctl", "start", GPU0)
    assert "serving coder-gguf" in node.show(GPU0, "StatusText")


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (("chown", "_rolemesh-agent"), "belongs to uid "),
        (("chmod", "0757"), "can be written by others than root"),
        (("chmod", "0770"), "can be written by others than root"),
    ],
)
def test_a_directory_that_others_than_root_can_write_is_refused(
    node: Host, spoil: tuple[str, str], fault: str
) -> None:
    configure_other(node, "coder")
    node.run(*spoil, OTHER)
    assert refusal(node).startswith(f"{OTHER}: {fault}")


def test_a_restart_keeps_what_was_read(node: Host) -> None:
    drop_in(node, "node", "50-test.yaml", configuration("planner", save_slots=True))
    node.run("systemctl", "start", GPU0)
    read = int(node.run("python3", "-c", READ).stdout)
    assert read >= 200
    node.run("systemctl", "restart", GPU0)
    assert int(node.run("python3", "-c", READ).stdout) < 5
    assert node.run("stat", "-c", "%a %U", "/var/cache/rolemesh/llama/slots").stdout == (
        "700 _rolemesh-llama\n"
    )
