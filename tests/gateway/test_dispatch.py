"""Where a request goes, and where it goes next: flows against upstreams that follow a script."""

import asyncio
from typing import Any

import pytest

from rolemesh.names import NodeId
from rolemesh.runtime.tasks import TaskScope
from tests.fakes.upstream import (
    CHUNKED_STREAM,
    LAST_CHUNK,
    Conversation,
    Script,
    answers,
    chunk,
    sends_and_closes,
    sends_and_hangs,
)
from tests.gateway.conftest import StartGateway, StartUpstream
from tests.gateway.harness import Running, asking
from tests.lab.poll import eventually
from tests.lab.processes import free_port

OK = answers(b'{"ok": true}')
BUSY = answers(b'{"error": {"code": "slots_busy"}}', 503)
BREAKS = sends_and_closes()
COLD = {"model_id": "m", "roles": ["coder"], "state": "cold"}
ONE_SLOT = {"model_id": "m", "roles": ["coder"], "slots": 1}


def fails(status: int, text: str = "no") -> Script:
    return answers(f'{{"error": "{text}"}}'.encode(), status, fields=b"Retry-After: 3\r\n")


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> Running:
    return await start_gateway()


# --- what is sent -----------------------------------------------------------------------------


async def test_a_node_gets_the_request_in_its_own_words(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    alias = {
        "type": "discovered",
        "defaults": {"temperature": 0, "n": 1},
        "timeouts": {"load_wait_s": 7},
    }
    gateway = await start_gateway(models={"coder": alias})
    up = await start_upstream(OK)
    await gateway.register("box", up, api_key="node-secret")
    body = b'{"model": "coder",  "x": 1e400, "n":2}'
    fields = ("X-Request-Id: id-1", "Accept: text/event-stream", "Cookie: a=b")
    reply = await gateway.post("/chat/completions?x=1", body, *fields, "Authorization: Bearer mine")
    assert (reply.status, reply.json) == (200, {"ok": True})
    assert reply.fields["x-request-id"] == "id-1"
    assert reply.fields["x-rolemesh-node"] == "box"
    assert reply.fields["x-rolemesh-model"] == "m"
    assert reply.fields["x-rolemesh-attempts"] == "1"
    assert int(reply.fields["x-rolemesh-queue-ms"]) < 1000
    (sent,) = up.conversations
    assert sent.body == b'{"temperature":0,"n":2,"model":"m","x":1e400}'
    assert sent.method_and_path == "POST /v1/chat/completions"
    assert sent.fields == {
        "host": f"127.0.0.1:{up.port}",
        "content-type": "application/json",
        "x-request-id": "id-1",
        "accept": "text/event-stream",
        "authorization": "Bearer node-secret",
        "x-rolemesh-load-wait": "7",
        "content-length": str(len(sent.body)),
    }


async def test_a_proxy_gets_the_request_below_its_prefix_and_no_key(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(OK)
    planner = {"type": "proxy", "proxy_url": f"{up.url}/deep", "openai_model_name": "theirs"}
    gateway = await start_gateway(models={"planner": planner})
    reply = await gateway.chat("planner")
    assert reply.fields["x-rolemesh-model"] == "theirs"
    (sent,) = up.conversations
    assert sent.method_and_path == "POST /deep/v1/chat/completions"
    assert sent.json == {"model": "theirs"}
    assert {"authorization", "x-rolemesh-load-wait"}.isdisjoint(sent.fields)


# --- another candidate ------------------------------------------------------------------------


async def two_nodes(gateway: Running, first: Any, second: Any) -> None:
    """Register two nodes; the second is asked only after the first, because it is cold."""
    await gateway.register("first", first)
    await gateway.register("second", second, COLD)


async def test_who_cannot_be_reached_is_passed_over_and_found_lost(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    await two_nodes(gateway, f"http://127.0.0.1:{free_port()}", await start_upstream(OK))
    reply = await gateway.chat()
    assert reply.status == 200
    assert reply.fields["x-rolemesh-node"] == "second"
    assert reply.fields["x-rolemesh-attempts"] == "2"
    await eventually(lambda: gateway.node_state("first") == "lost", what="it is out of routing")
    assert (await gateway.chat()).fields["x-rolemesh-attempts"] == "1"


@pytest.mark.parametrize("script", [fails(500), fails(502), fails(503), BREAKS])
async def test_a_failure_before_the_first_byte_is_tried_elsewhere(
    gateway: Running, start_upstream: StartUpstream, script: Script
) -> None:
    await two_nodes(gateway, await start_upstream(script), await start_upstream(OK))
    reply = await gateway.chat()
    assert (reply.status, reply.fields["x-rolemesh-attempts"]) == (200, "2")


async def test_a_plain_request_that_timed_out_behind_a_node_is_not_repeated(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    second = await start_upstream(OK)
    await two_nodes(gateway, await start_upstream(fails(504)), second)
    assert (await gateway.chat()).status == 504  # it may still be running there
    assert second.conversations == []


async def test_a_request_leaves_a_node_that_went_silent_for_another(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    silent = await start_upstream(sends_and_hangs())
    await two_nodes(gateway, silent, await start_upstream(OK))
    async with TaskScope() as scope:
        asked = scope.start(gateway.chat(), name="a request on the silent node")
        await eventually(lambda: silent.conversations, what="the request is there")
        gateway.registry.did_not_answer(NodeId("first"))  # as a probe would find
        reply = await asked
    assert (reply.status, reply.fields["x-rolemesh-node"]) == (200, "second")


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 501])
async def test_an_answer_that_would_be_the_same_elsewhere_is_passed_on(
    gateway: Running, start_upstream: StartUpstream, status: int
) -> None:
    second = await start_upstream(OK)
    await two_nodes(gateway, await start_upstream(fails(status)), second)
    reply = await gateway.chat()
    assert (reply.status, reply.json) == (status, {"error": "no"})
    assert second.conversations == []


async def test_a_request_is_sent_twice_at_most_and_the_last_answer_counts(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    ups = [await start_upstream(fails(503, f"no {number}")) for number in range(3)]
    for number, up in enumerate(ups):
        await gateway.register(f"n{number}", up)
    reply = await gateway.chat()
    asked = [up for up in ups if up.conversations]
    assert len(asked) == 2
    assert reply.status == 503
    assert reply.json["error"] in {"no 0", "no 1", "no 2"}
    assert reply.fields["retry-after"] == "3"
    assert reply.fields["x-rolemesh-attempts"] == "2"
    assert reply.fields["x-rolemesh-node"] == f"n{reply.json['error'][-1]}"


async def test_when_nobody_can_be_reached_the_client_is_told(gateway: Running) -> None:
    await two_nodes(gateway, *(f"http://127.0.0.1:{free_port()}" for _ in range(2)))
    reply = await gateway.chat()
    assert (reply.status, reply.error["code"]) == (502, "connect_failed")


async def test_a_crash_may_be_over_when_it_is_tried_once_more(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(BREAKS, OK)
    await gateway.register("box", up)
    assert (await gateway.chat()).fields["x-rolemesh-attempts"] == "2"


async def test_a_request_that_breaks_whoever_it_is_sent_to_is_sent_twice(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(BREAKS)
    await gateway.register("box", up)
    reply = await gateway.chat()
    assert (reply.status, reply.error["code"]) == (502, "upstream_broke")
    assert len(up.conversations) == 2


async def test_a_stream_that_breaks_after_its_first_byte_is_not_repeated(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    second = await start_upstream(OK)
    first = await start_upstream(sends_and_closes(CHUNKED_STREAM + chunk(b"data: 1\n\n")))
    await two_nodes(gateway, first, second)
    async with asking(gateway, stream=True) as client:
        got = await client.rest()
    assert b'"code": "upstream_broke"' in got
    assert not got.endswith(LAST_CHUNK)
    assert second.conversations == []
    await eventually(lambda: first.probes, what="whether it is still there is looked at")


# --- time -------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [True, False])
async def test_after_a_timeout_only_a_stream_is_tried_elsewhere(
    start_gateway: StartGateway, start_upstream: StartUpstream, streams: bool
) -> None:
    """What is not streamed may still be running there."""
    gateway = await start_gateway(timeouts={"first_byte_s": 0.1})
    second = await start_upstream(OK)
    await two_nodes(gateway, await start_upstream(sends_and_hangs()), second)
    reply = await gateway.chat(stream=streams)
    assert reply.status == (200 if streams else 504)
    assert len(second.conversations) == streams
    if not streams:
        assert reply.error["timeout"] == "first_byte_s"


async def test_the_whole_takes_no_longer_than_it_may(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway(timeouts={"total_s": 0.2})
    await two_nodes(gateway, *[await start_upstream(sends_and_hangs()) for _ in range(2)])
    reply = await gateway.chat(stream=True)
    assert (reply.status, reply.error["timeout"]) == (504, "total_s")


# --- slots and the queue ----------------------------------------------------------------------


async def test_a_node_that_says_it_is_full_is_asked_again_until_it_is_not(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(BUSY, BUSY, OK)
    await gateway.register("box", up)
    reply = await gateway.chat()
    assert (reply.status, reply.fields["x-rolemesh-attempts"]) == (200, "3")
    assert int(reply.fields["x-rolemesh-queue-ms"]) >= 400


async def test_another_node_takes_what_a_full_one_does_not(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    await gateway.register("first", await start_upstream(BUSY))
    await gateway.register("second", await start_upstream(OK), {**COLD, "state": "loading"})
    reply = await gateway.chat()
    assert reply.fields["x-rolemesh-node"] == "second"
    assert int(reply.fields["x-rolemesh-queue-ms"]) < 200


async def test_waiting_for_a_full_node_ends_with_the_longest_wait(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    """Each time anew it would last total_s."""
    gateway = await start_gateway(limits={"max_queue_wait_s": 0.6})
    up = await start_upstream(BUSY)
    await gateway.register("box", up)
    reply = await asyncio.wait_for(gateway.chat(), 5)
    assert (reply.status, reply.error["code"]) == (429, "queue_timeout")
    assert 2 <= len(up.conversations) <= 4


class Held:
    """A script that answers when told to."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def __call__(self, conversation: Conversation) -> None:
        await self.release.wait()
        await OK(conversation)


async def test_requests_beyond_the_slots_wait_for_their_turn(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    held = Held()
    up = await start_upstream(held)
    await gateway.register("box", up, ONE_SLOT)
    async with asking(gateway) as first, asking(gateway) as second:
        await eventually(lambda: gateway.queued("coder") == 1, what="one waits")
        assert len(up.conversations) == 1
        held.release.set()
        for client in (first, second):
            assert (await client.reply()).status == 200
    assert up.accepted == 1
    assert gateway.in_flight() == 0


async def test_a_full_queue_is_a_429_that_names_its_limit(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway(limits={"max_queue": 1})
    await gateway.register("box", await start_upstream(sends_and_hangs()), ONE_SLOT)
    async with asking(gateway), asking(gateway):
        await eventually(lambda: gateway.queued("coder") == 1, what="one waits")
        reply = await gateway.chat()
        assert (reply.status, reply.error["code"]) == (429, "queue_full")
        assert "limits.max_queue" in reply.error["message"]
        assert reply.fields["retry-after"] == "1"


async def test_a_client_that_leaves_frees_its_slot_and_its_place(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(sends_and_hangs(), OK)
    await gateway.register("box", up, ONE_SLOT)
    async with asking(gateway) as holding, asking(gateway) as waiting:
        await eventually(lambda: gateway.queued("coder") == 1, what="one waits")
        waiting.half_close()
        await eventually(lambda: gateway.queued("coder") == 0, what="it left", deadline_s=1)
        assert gateway.in_flight() == 1
        holding.reset()
        await eventually(lambda: gateway.in_flight() == 0, what="it is free", deadline_s=1)
    assert (await gateway.chat()).status == 200


async def test_a_request_in_the_queue_follows_what_happens_to_the_nodes(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    await gateway.register("box", await start_upstream(sends_and_hangs()), ONE_SLOT)
    async with asking(gateway), asking(gateway) as waiting:
        await eventually(lambda: gateway.queued("coder") == 1, what="one waits")
        await gateway.register("other", await start_upstream(OK))
        assert (await waiting.reply()).fields["x-rolemesh-node"] == "other"


async def test_a_proxy_has_as_many_requests_as_it_may(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    held = Held()
    up = await start_upstream(held)
    planner = {"type": "proxy", "proxy_url": up.url, "max_in_flight": 2}
    gateway = await start_gateway(models={"planner": planner})
    async with (
        asking(gateway, "planner") as a,
        asking(gateway, "planner") as b,
        asking(gateway, "planner", n=2) as c,
    ):
        await eventually(lambda: gateway.queued("planner") == 1, what="one waits")
        assert len(up.conversations) <= 2
        held.release.set()
        for client in (a, b, c):
            assert (await client.reply()).status == 200


# --- nobody -----------------------------------------------------------------------------------


async def test_without_a_usable_candidate_the_reason_is_told(gateway: Running) -> None:
    reply = await gateway.chat()
    assert (reply.status, reply.error["code"]) == (503, "unavailable")
    assert reply.error["reason"] == "no node announces the role coder"
    assert reply.fields["retry-after"] == "2"
