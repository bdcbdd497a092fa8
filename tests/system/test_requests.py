"""Two hosts and a client elsewhere: what an administrator sets up, and how a request is followed."""

import json
import threading

import pytest

from tests.lab.host import Host
from tests.lab.poll import eventually_sync
from tests.system.mesh import AGENT, GATEWAY_UNIT, Mesh, llama_server_of, llama_unit

CODER = llama_unit("gpu1")
REQUEST_FIELD = "ROLEMESH_REQUEST_ID"
MANY = 20_000
CONNECTIONS = 4


def test_a_chat_by_role_is_answered_by_an_instance_started_by_hand(mesh: Mesh) -> None:
    mesh.node.run("systemctl", "start", CODER)
    started = llama_server_of(mesh.node, "gpu1")
    mesh.wait_until_usable("coder")
    reply = mesh.chat("coder")
    assert reply.says == "the code of the coder"
    assert reply.headers["x-rolemesh-node"] == "box"
    assert llama_server_of(mesh.node, "gpu1") == started


def test_the_journals_of_both_hosts_show_a_request_by_its_id(mesh: Mesh) -> None:
    mesh.node.run("systemctl", "start", CODER)
    mesh.wait_until_usable("coder")
    reply = mesh.chat("coder", request_id="ask-me-again-17")
    assert reply.headers["x-request-id"] == "ask-me-again-17"
    for host, unit in ((mesh.gateway, GATEWAY_UNIT), (mesh.node, AGENT)):
        (record,) = host.journal(f"{REQUEST_FIELD}=ask-me-again-17")
        assert record["_SYSTEMD_UNIT"] == unit
        assert record["PRIORITY"] == "6"
        assert record["ROLEMESH_STATUS"] == "200"
        assert record["ROLEMESH_MODEL_ID"] == "coder-gguf"


def ask_many(mesh: Mesh, numbers: range, failures: list[str]) -> None:
    """Ask for one token again and again on one connection."""
    connection = mesh.connect()
    body = {"model": "coder", "prompt": "go", "max_tokens": 1}
    for number in numbers:
        name = {"X-Request-Id": f"many-{number}"}
        reply = connection.ask("POST", "/v1/completions", body, name)
        if reply.status != 200:
            failures.append(reply.text)
    connection.close()


def recorded(host: Host, unit: str) -> list[str]:
    """Return the ids of all the many requests that a daemon's records are about."""
    fields = ("--output=json", f"--output-fields={REQUEST_FIELD}")
    lines = host.run("journalctl", "--quiet", *fields, f"_SYSTEMD_UNIT={unit}").stdout
    ids = (json.loads(line).get(REQUEST_FIELD, "") for line in lines.splitlines())
    return [each for each in ids if each.startswith("many-")]


def wait_for_records(host: Host, unit: str, count: int) -> None:
    """Wait until a daemon's records of the many requests are in its host's journal."""
    host.run("journalctl", "--sync")
    what = f"{count} records of {unit}"
    eventually_sync(lambda: len(recorded(host, unit)) >= count, what=what, deadline_s=30)


@pytest.mark.timeout(300)
def test_many_requests_leave_exactly_as_many_records(mesh: Mesh) -> None:
    mesh.node.run("systemctl", "start", CODER)
    mesh.wait_until_usable("coder")
    failures: list[str] = []
    threads = [
        threading.Thread(target=ask_many, args=(mesh, range(first, MANY, CONNECTIONS), failures))
        for first in range(CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    expected = sorted(f"many-{number}" for number in range(MANY))
    for host, unit in ((mesh.gateway, GATEWAY_UNIT), (mesh.node, AGENT)):
        wait_for_records(host, unit, MANY)
        assert sorted(recorded(host, unit)) == expected
