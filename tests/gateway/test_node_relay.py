"""What operators ask of a node by way of the gateway."""

import json
from typing import Any

import pytest

from rolemesh.gateway.access import OPERATOR
from rolemesh.gateway.node_relay import NodeRelay
from rolemesh.gateway.registry import Registry
from rolemesh.names import NodeId
from rolemesh.wire import NodeReport
from tests.fakes.client import connected, request
from tests.fakes.serving import echo, serving
from tests.fakes.upstream import (
    LAST_CHUNK,
    Conversation,
    Script,
    Upstream,
    answers,
    chunk,
    reply,
    sends,
    sends_and_closes,
    sends_and_hangs,
)
from tests.gateway.conftest import StartGateway, StartUpstream
from tests.gateway.harness import Running
from tests.lab.poll import eventually

NODE = "/v1/rolemesh/nodes/box/node"
ADMIN = "X-Api-Key: admin-key"
AUTH = {
    "clients": {"ops": {"key": "admin-key", "admin": True}, "ci": {"key": "client-key"}},
    "nodes": {"box": {"key": "node-key"}},
}
LINES = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def line(**tree: Any) -> bytes:
    return chunk(json.dumps(tree).encode() + b"\n")


async def started(
    start_gateway: StartGateway, start_upstream: StartUpstream, script: Script, **options: Any
) -> tuple[Running, Upstream]:
    """Return a gateway and the node `box`, whose agent plays the script."""
    gateway = await start_gateway(auth=AUTH)
    agent = await start_upstream(script, **options)
    body = {"node_id": "box", "base_url": agent.url, "api_key": "the-token", "models": []}
    registered = await gateway.post("/v1/nodes/register", body, "X-Api-Key: node-key")
    assert registered.status == 200
    return gateway, agent


async def test_a_request_is_passed_on_with_the_agents_own_key(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    refusal = reply(b'{"error": {"code": "unavailable"}}', 503, fields=b"Retry-After: 5\r\n")
    gateway, agent = await started(start_gateway, start_upstream, sends(refusal))
    path = f"{NODE}/models/org%2Fa%20b/load?wait_s=0&x=%20"
    got = await gateway.post(path, {"instance": "gpu1"}, ADMIN, "X-Request-Id: mine")
    assert (got.status, got.fields["retry-after"]) == (503, "5")
    assert got.json == {"error": {"code": "unavailable"}}
    (asked,) = agent.conversations
    assert asked.method_and_path == "POST /v1/node/models/org/a%20b/load?wait_s=0&x=%20"
    assert asked.json == {"instance": "gpu1"}
    assert asked.fields["authorization"] == "Bearer the-token"
    assert asked.fields["x-request-id"] == "mine"
    assert "x-api-key" not in asked.fields


async def test_a_question_is_passed_on(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    asked: list[str] = []

    async def probe(conversation: Conversation) -> None:
        asked.append(conversation.method_and_path)
        await answers(b'{"node_id": "box"}')(conversation)

    gateway, _ = await started(start_gateway, start_upstream, sends(), probe=probe)
    assert (await gateway.get(NODE, ADMIN)).json == {"node_id": "box"}
    assert (await gateway.get(f"{NODE}/plan?model=a", ADMIN)).status == 200
    assert asked[-2:] == ["GET /v1/node", "GET /v1/node/plan?model=a"]


async def test_lines_come_as_they_are_sent(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    async def goes_on(conversation: Conversation) -> None:
        await conversation.send(LINES)
        while True:
            await conversation.send(line(state="starting"))

    gateway, agent = await started(start_gateway, start_upstream, goes_on)
    async with connected(gateway.port) as client:
        await client.send(
            request("POST", f"{NODE}/models/m/load", ADMIN, "Accept: application/x-ndjson")
        )
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"content-type: application/x-ndjson" in head.lower()
        assert b'{"state": "starting"}\n' in await client.reader.readuntil(b"}\n")
        assert agent.conversations[0].fields["accept"] == "application/x-ndjson"
        client.reset()
    await eventually(lambda: not agent.writers, what="the agent has seen it leave")


async def test_an_agent_that_breaks_off_is_told_in_the_last_line(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    script = sends_and_closes(LINES + line(state="starting"))
    gateway, _ = await started(start_gateway, start_upstream, script)
    got = await gateway.post(f"{NODE}/models/m/load", {}, ADMIN)
    assert got.status == 200
    first, last = map(json.loads, got.body.splitlines())
    assert first == {"state": "starting"}
    assert (last["error"]["status"], last["error"]["code"]) == (502, "upstream_broke")


async def test_lines_that_end_well_end_well(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    script = sends(LINES + line(state="ready") + LAST_CHUNK)
    gateway, _ = await started(start_gateway, start_upstream, script)
    got = await gateway.post(f"{NODE}/models/m/load", {}, ADMIN)
    assert [json.loads(each) for each in got.body.splitlines()] == [{"state": "ready"}]


@pytest.mark.parametrize("sent", [b"", LINES + line(state="starting")])
async def test_an_agent_that_falls_silent_is_given_up(
    start_upstream: StartUpstream, sent: bytes
) -> None:
    agent = await start_upstream(sends_and_hangs(sent))
    registry = Registry(stale_after_s=60, on_change=lambda: None, on_silent=lambda _: None)
    report = NodeReport(node_id=NodeId("box"), base_url=agent.url, inventory={})
    registry.register(report, agent.address)
    relay = NodeRelay(registry, lambda _: OPERATOR, silence_s=0.05)
    async with serving(echo, routes=relay.routes()) as served, connected(served.port) as client:
        got = await client.post(f"{NODE}/models/m/unload", b"")
    error = json.loads(got.body.splitlines()[-1])["error"]
    assert (error["status"], error["timeout"]) == (504, "idle_s")


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        (f"{NODE}/plan", (), 401),
        (f"{NODE}/plan", ("X-Api-Key: client-key",), 403),
        ("/v1/rolemesh/nodes/other/node/plan", (ADMIN,), 404),
        (f"{NODE}/../chat/completions", (ADMIN,), 404),
        (f"{NODE}/models/%2E%2E/x", (ADMIN,), 404),
        (f"{NODE}/models%2F..%2Fx", (ADMIN,), 404),
    ],
)
async def test_others_and_other_paths_are_refused(
    start_gateway: StartGateway,
    start_upstream: StartUpstream,
    path: str,
    fields: tuple[str, ...],
    status: int,
) -> None:
    gateway, agent = await started(start_gateway, start_upstream, answers(b"{}"))
    assert (await gateway.get(path, *fields)).status == status
    assert (await gateway.post(path, {}, *fields)).status == status
    assert agent.conversations == []
