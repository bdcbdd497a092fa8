"""A request that somebody else ends: an operator, or whoever takes its key away."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from rolemesh.runtime.journal import FIELDS
from tests.fakes.client import Client, connected, post, request
from tests.fakes.upstream import CHUNKED_STREAM, LAST_CHUNK, chunk, sends_and_hangs
from tests.gateway.conftest import StartGateway, StartUpstream
from tests.gateway.harness import CHAT, DISCOVERED, Running
from tests.lab.poll import eventually

ONE_SLOT = {"model_id": "m", "roles": ["coder"], "slots": 1}
STREAMING = CHUNKED_STREAM + chunk(b"data: 1\n\n")


def records(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [
        getattr(each, FIELDS)
        for each in caplog.records
        if each.name == "rolemesh.gateway.inference"
    ]


async def delete(gateway: Running, request_id: str) -> int:
    """Cancel a request as an operator; returns the status of the answer."""
    async with connected(gateway.port) as client:
        await client.send(request("DELETE", f"/v1/rolemesh/requests/{request_id}"))
        return (await client.reply()).status


def asks(name: str, *fields: str, stream: bool = False) -> bytes:
    body = json.dumps({"model": "coder", "stream": stream}).encode()
    return post(CHAT, body, f"X-Request-Id: {name}", *fields)


async def test_an_operator_ends_requests_in_every_phase(
    start_gateway: StartGateway, start_upstream: StartUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await start_gateway()
    up = await start_upstream(sends_and_hangs(), sends_and_hangs(STREAMING))
    await gateway.register("box", up, {**ONE_SLOT, "slots": 2})
    async with (
        connected(gateway.port) as unheard,
        connected(gateway.port) as streaming,
        connected(gateway.port) as queued,
    ):
        await unheard.send(asks("unheard"))
        await eventually(lambda: len(up.conversations) == 1, what="one is sent")
        await streaming.send(asks("streaming", stream=True))
        await streaming.reader.readuntil(b"data: 1\n\n")
        await queued.send(asks("queued"))
        await eventually(lambda: gateway.queued("coder") == 1, what="one waits")

        assert await delete(gateway, "queued") == 200
        assert await delete(gateway, "unheard") == 200
        for client in (queued, unheard):
            reply = await client.reply()
            assert (reply.status, reply.error["code"]) == (503, "cancelled")
        assert await delete(gateway, "streaming") == 200
        rest = await streaming.rest()
        assert b'"code": "cancelled"' in rest
        assert not rest.endswith(LAST_CHUNK)

    assert await delete(gateway, "queued") == 404
    await eventually(lambda: gateway.in_flight() == 0, what="all slots are free", deadline_s=1)
    await eventually(lambda: len(records(caplog)) == 3, what="all are recorded")
    found = {record["request_id"]: record for record in records(caplog)}
    assert {name: found[name]["phase"] for name in found} == {
        "queued": "queue",
        "unheard": "upstream",
        "streaming": "stream",
    }
    assert {record["status"] for record in found.values()} == {503}


KEYS = {"kept": {"key": "kept-key"}, "gone": {"key": "gone-key"}}


def with_keys(**clients: Any) -> dict[str, Any]:
    return {"models": {"coder": DISCOVERED}, "auth": {"clients": clients}}


async def ended(client: Client) -> bool:
    """Tell whether a request was ended because its key went."""
    reply = await client.reply()
    assert (reply.status, reply.error["code"]) == (503, "cancelled")
    assert "key" in reply.error["message"]
    return True


@pytest.mark.parametrize(
    "after",
    [
        with_keys(kept=KEYS["kept"]),
        with_keys(kept=KEYS["kept"], gone={"key": "another-key"}),
        with_keys(kept=KEYS["kept"], gone={**KEYS["gone"], "roles": ["critic"]}),
    ],
    ids=["removed", "replaced", "for another alias"],
)
async def test_who_has_lost_its_key_loses_its_requests_and_nobody_else_does(
    start_gateway: StartGateway, start_upstream: StartUpstream, after: dict[str, Any]
) -> None:
    after["models"] = {**after["models"], "critic": DISCOVERED}
    gateway = await start_gateway(**with_keys(**KEYS))
    up = await start_upstream(sends_and_hangs())
    await gateway.register("box", up, {**ONE_SLOT, "slots": 2})
    async with (
        connected(gateway.port) as kept,
        connected(gateway.port) as running,
        connected(gateway.port) as waiting,
    ):
        await kept.send(asks("kept", "Authorization: Bearer kept-key"))
        await running.send(asks("running", "Authorization: Bearer gone-key"))
        await eventually(lambda: len(up.conversations) == 2, what="both are sent")
        await waiting.send(asks("waiting", "Authorization: Bearer gone-key"))
        await eventually(lambda: gateway.queued("coder") == 1, what="one waits")

        await gateway.reload(after)

        assert await ended(running)
        assert await ended(waiting)
        assert gateway.in_flight() == 1
        assert list(gateway.gateway._inbound.live) == ["kept"]


async def test_without_keys_a_reload_that_brings_some_ends_nothing(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway()
    up = await start_upstream(sends_and_hangs())
    await gateway.register("box", up)
    async with connected(gateway.port) as client:
        await client.send(asks("first"))
        await eventually(lambda: up.conversations, what="it is sent")
        await gateway.reload(with_keys(**KEYS))
        assert gateway.in_flight() == 1


Break = Callable[[Client], None]


@pytest.mark.parametrize("leave", [Client.half_close, Client.reset])
async def test_a_client_that_leaves_in_the_moment_its_request_is_cancelled_harms_nobody(
    start_gateway: StartGateway, start_upstream: StartUpstream, leave: Break
) -> None:
    gateway = await start_gateway()
    await gateway.register("box", up := await start_upstream(sends_and_hangs()), ONE_SLOT)
    async with connected(gateway.port) as client, connected(gateway.port) as operator:
        await client.send(asks("leaver"))
        await eventually(lambda: up.conversations, what="it is sent")
        leave(client)
        await operator.send(request("DELETE", "/v1/rolemesh/requests/leaver"))
        assert (await operator.reply()).status in (200, 404)
    await eventually(lambda: gateway.in_flight() == 0, what="the slot is free", deadline_s=1)
    assert not gateway.gateway._inbound.live
