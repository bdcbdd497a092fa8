"""What became of a request, gathered from the gateway and the nodes."""

import json
from typing import Any

from tests.fakes.upstream import Conversation, Script, answers, sends_and_hangs
from tests.gateway.conftest import StartGateway, StartUpstream
from tests.gateway.harness import Running
from tests.lab.processes import free_port

OK = answers(b"{}")
REQUEST_ID = "X-Request-Id: trace-me"


def remembers(*records: Any, key: str = "") -> Script:
    """Answer for a node that remembers these records, if it is shown the key."""

    async def script(conversation: Conversation) -> None:
        asks = conversation.method_and_path == "GET /v1/node/requests/trace-me"
        if asks and conversation.fields.get("authorization", "") != key:
            await answers(b"{}", 401)(conversation)
            return
        tree = {"request_id": "trace-me", "records": records} if asks else {}
        await answers(json.dumps(tree).encode())(conversation)

    return script


async def trace(gateway: Running, request_id: str = "trace-me") -> Any:
    reply = await gateway.get(f"/v1/rolemesh/trace/{request_id}")
    assert reply.status == 200
    assert reply.json["request_id"] == request_id
    return reply.json


async def test_a_trace_has_the_records_of_the_gateway_and_of_the_nodes(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway()
    on_node = {"request_id": "trace-me", "instance": "gpu0", "at": "2020-01-01T00:00:00+00:00"}
    up = await start_upstream(OK, probe=remembers(on_node, key="Bearer t0ken"))
    await gateway.register("box", up, api_key="t0ken")
    await gateway.register("other", await start_upstream(OK, probe=remembers()))
    await gateway.chat("coder", REQUEST_ID)
    tree = await trace(gateway)
    assert tree["unreachable"] == []
    node, own = tree["records"]
    assert node == {"source": "box", "fields": on_node}
    assert (own["source"], own["fields"]["status"], own["fields"]["alias"]) == (
        "gateway",
        200,
        "coder",
    )


async def test_a_node_that_cannot_tell_is_named_with_the_reason(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway()
    dead = f"http://127.0.0.1:{free_port()}"
    await gateway.register("dead", dead)
    await gateway.register("deaf", await start_upstream(OK, probe=sends_and_hangs()))
    await gateway.register("odd", await start_upstream(OK, probe=answers(b"[]")))
    await gateway.register("older", await start_upstream(OK, probe=answers(b"{}", 404)))
    tree = await trace(gateway)
    assert tree["records"] == []
    reasons = {each["node_id"]: each["reason"] for each in tree["unreachable"]}
    assert reasons.keys() == {"dead", "deaf", "odd", "older"}
    assert "Connection refused" in reasons["dead"]
    assert "no reply within 2 s" in reasons["deaf"]
    assert "cannot be read" in reasons["odd"]
    assert "answers 404" in reasons["older"]


async def test_an_id_that_needs_quoting_is_no_other_path(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway()
    asked: list[str] = []

    async def probe(conversation: Conversation) -> None:
        asked.append(conversation.method_and_path)
        await answers(b'{"records": []}')(conversation)

    await gateway.register("box", await start_upstream(OK, probe=probe))
    await gateway.get("/v1/rolemesh/trace/a%20b%2F..%2Fc")
    assert [path for path in asked if path.startswith("GET /v1/node/")] in (
        [],
        ["GET /v1/node/requests/a%20b%2F..%2Fc"],
    )
