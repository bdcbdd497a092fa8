"""rolemeshctl on hosts as the packages make them: who may use it, and what it finds there."""

import json
from typing import Any

import pytest

from tests.lab.host import Host
from tests.lab.poll import eventually_sync
from tests.system.mesh import AGENT, GATEWAY_PORT, GATEWAY_UNIT, Mesh, llama_unit

CONTROL = "/run/rolemesh/gateway/control.sock"
AGENT_CONTROL = "/run/rolemesh/node/control.sock"
KEY_FILE = "/etc/rolemesh/gateway.d/key-ci.yaml"
CODER = llama_unit("gpu1")


@pytest.fixture(scope="module")
def gateway(mesh: Mesh) -> Host:
    """Return the gateway's host, with an operator and somebody else."""
    mesh.gateway.run("useradd", "--groups=rolemesh", "ann")
    mesh.gateway.run("useradd", "eve")
    return mesh.gateway


def stat(host: Host, path: str) -> str:
    return host.run("stat", "--format=%a %U:%G", path).stdout.strip()


def test_the_control_socket_is_for_root_and_the_group(gateway: Host) -> None:
    assert stat(gateway, CONTROL) == "660 _rolemesh-gateway:rolemesh"
    for user in ("", "ann"):
        done = gateway.run("rolemeshctl", "status", "--json", user=user)
        assert json.loads(done.stdout)["nodes"][0]["node_id"] == "box"
    refused = gateway.run("rolemeshctl", "status", user="eve", check=False)
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "join the group rolemesh" in refused.stderr


def test_the_control_socket_of_an_agent_is_for_the_same_people(mesh: Mesh) -> None:
    node = mesh.node
    node.run("useradd", "--groups=rolemesh", "ann")
    node.run("useradd", "eve")
    assert stat(node, AGENT_CONTROL) == "660 _rolemesh-agent:rolemesh"
    for user in ("", "ann"):
        told = json.loads(node.run("rolemeshctl", "node", "plan", "--json", user=user).stdout)
        assert {plan["model_id"] for plan in told["plans"]} >= {"coder-gguf"}
    pid = node.run("systemctl", "show", "--property=MainPID", "--value", AGENT).stdout.strip()
    groups = node.run("grep", "^Groups:", f"/proc/{pid}/status").stdout.split()[1:]
    rolemesh = node.run("getent", "group", "rolemesh").stdout.split(":")[2]
    assert rolemesh not in groups, "it could open the control socket of a gateway there"
    refused = node.run("rolemeshctl", "node", "plan", user="eve", check=False)
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "join the group rolemesh" in refused.stderr


def test_an_operator_of_the_gateway_tells_a_node_what_to_run(gateway: Host, mesh: Mesh) -> None:
    done = gateway.run("rolemeshctl", "load", "coder-gguf", "--on", "gpu1", user="ann")
    assert done.stdout.startswith("coder-gguf is ready on box, gpu1 (")
    assert mesh.chat("coder").status == 200
    gateway.run("rolemeshctl", "pin", "gpu1", "--node", "box", user="ann")

    def is_shown() -> bool:
        shown = gateway.run("rolemeshctl", "nodes", "--json", user="ann").stdout
        instances = json.loads(shown)["nodes"][0]["instances"]
        (gpu1,) = (each for each in instances if each["instance"] == "gpu1")
        return (gpu1["pinned"], gpu1["model_id"]) == (True, "coder-gguf")

    eventually_sync(is_shown, what="gpu1 is shown as pinned")
    gateway.run("rolemeshctl", "unpin", "gpu1", "--node", "box", user="ann")


def test_an_operator_sees_which_version_of_each_part_runs(gateway: Host, mesh: Mesh) -> None:
    assert mesh.chat("coder").status == 200

    def parts() -> list[dict[str, Any]]:
        told = gateway.run("rolemeshctl", "status", "--versions", "--json").stdout
        found: list[dict[str, Any]] = json.loads(told)["parts"]
        return found

    eventually_sync(
        lambda: {part["is_old"] for part in parts()} == {False}, what="all of it is known"
    )
    kinds = {part["part"] for part in parts()}
    assert kinds == {"rolemesh-gateway", "rolemesh-node-agent", "rolemesh-llama", "llama-server"}


def test_a_key_lasts_from_its_making_to_its_end(gateway: Host, mesh: Mesh) -> None:
    mesh.node.run("systemctl", "start", CODER)
    mesh.wait_until_usable("coder")
    refused = gateway.run("rolemeshctl", "key", "add", "ci", user="ann", check=False)
    assert refused.returncode == 1
    assert "use sudo" in refused.stderr
    added = gateway.run("rolemeshctl", "key", "add", "ci", "--roles", "coder")
    assert added.stderr == f"ci: {KEY_FILE}; in force\n"
    assert stat(gateway, KEY_FILE) == "640 root:_rolemesh-gateway"

    def status(path: str) -> int:
        connection = mesh.connect(gateway, GATEWAY_PORT)
        reply = connection.ask("GET", path, headers={"Authorization": f"Bearer {key}"})
        connection.close()
        return reply.status

    key = added.stdout.strip()
    assert status("/v1/models") == 200
    assert status("/v1/rolemesh/status") == 403
    gateway.run("rolemeshctl", "key", "revoke", "ci")
    assert status("/v1/models") == 401
    key = gateway.run("rolemeshctl", "key", "add", "guest", "--runtime").stdout.strip()
    assert status("/v1/models") == 200
    assert stat(gateway, "/run/rolemesh/gateway.d/key-guest.yaml") == "640 root:_rolemesh-gateway"
    gateway.run("rolemeshctl", "key", "revoke", "guest")
    assert status("/v1/models") == 401


def test_a_bad_file_is_refused_with_its_line(gateway: Host) -> None:
    bad = "/etc/rolemesh/gateway.d/90-bad.yaml"
    gateway.put(bad, "lisen: 1\n")
    try:
        done = gateway.run("rolemeshctl", "reload", user="ann", check=False)
    finally:
        gateway.run("rm", bad)
    assert done.returncode == 78
    assert f"{bad}:1: lisen: unknown key" in done.stderr
    assert gateway.run("rolemeshctl", "reload", user="ann").stdout.startswith("reloaded:")


def test_a_request_is_traced_through_journal_and_daemons(gateway: Host, mesh: Mesh) -> None:
    mesh.node.run("systemctl", "start", CODER)
    mesh.wait_until_usable("coder")
    assert mesh.chat("coder", request_id="trace-me").status == 200
    gateway.run("journalctl", "--sync")
    as_root = json.loads(gateway.run("rolemeshctl", "trace", "trace-me", "--json").stdout)
    assert (as_root["problems"], as_root["unreachable"]) == ([], [])
    by_gateway, by_node = sorted(as_root["records"], key=lambda each: each["source"] == "box")
    assert by_gateway["source"] == "rolemesh-gateway"
    assert by_gateway["message"].startswith("coder -> coder-gguf on box: 200 in")
    assert (by_node["source"], by_node["fields"]["instance"]) == ("box", "gpu1")
    as_ann = json.loads(
        gateway.run("rolemeshctl", "trace", "trace-me", "--json", user="ann").stdout
    )
    assert {each["source"] for each in as_ann["records"]} == {"gateway", "box"}
    assert "join the group systemd-journal" in as_ann["problems"][0]


def test_the_lines_of_the_llama_server_are_marked_as_inferred(mesh: Mesh) -> None:
    mesh.node.run("systemctl", "start", CODER)
    mesh.wait_until_usable("coder")
    assert mesh.chat("coder", request_id="infer-me").status == 200
    mesh.node.run("journalctl", "--sync")
    done = mesh.node.run("rolemeshctl", "trace", "infer-me", "--json")
    records = json.loads(done.stdout)["records"]
    assert [each["source"] for each in records if not each["inferred"]] == ["rolemesh-node-agent"]
    inferred = [each for each in records if each["inferred"]]
    assert inferred
    assert all(each["source"] == "rolemesh-llama" for each in inferred)


def test_the_shell_completes_names_for_an_operator(gateway: Host) -> None:
    script = "/usr/share/bash-completion/completions/rolemeshctl"
    line = (
        f". {script}; COMP_WORDS=(rolemeshctl drain ''); COMP_CWORD=2; _rolemeshctl; "
        "echo ${COMPREPLY[*]}"
    )
    offered = gateway.run("bash", "-c", line, user="ann").stdout.split()
    assert offered[:2] == ["box", "box/gpu0"]


def test_the_daemons_files_are_explained_where_they_are(gateway: Host, mesh: Mesh) -> None:
    shown = gateway.run("rolemeshctl", "config", "show", "listen.host").stdout
    assert "/etc/rolemesh/gateway.d/" in shown
    assert gateway.run("rolemeshctl", "config", "check").stdout.startswith("OK: ")
    assert mesh.node.run("rolemeshctl", "config", "check", "--program=node").returncode == 0
    everything = gateway.run("rolemeshctl", "config", "cat").stdout
    assert "(hidden)" in everything
    assert "key-of-the-" not in everything
    assert gateway.show(GATEWAY_UNIT, "ActiveState") == "active"
    assert mesh.node.show(AGENT, "ActiveState") == "active"
