"""The server as a whole: request ids, what happens to failing handlers, and draining."""

import asyncio
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

from rolemesh import errors
from rolemesh.names import RequestId
from rolemesh.relay import inbound
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.replies import Reply
from rolemesh.runtime.tasks import TaskScope
from tests.fakes.client import ask, connected, post, request
from tests.fakes.serving import HandlerJob, echo, serving
from tests.lab.poll import eventually

PATH = "/v1/completions"
MADE_ID = r"req-[0-9a-f]{24}"


class Gate:
    """A handler that answers when told to."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.started = 0

    async def __call__(self, request: InboundRequest, client: ClientStream) -> None:
        self.started += 1
        await self.opened.wait()
        await echo(request, client)


# --- request ids ------------------------------------------------------------------------------


@pytest.mark.parametrize("sane", ["a", "A.b_c:d-9", "x" * 128])
async def test_a_sane_request_id_is_taken_over_and_echoed(sane: str) -> None:
    async with serving(echo) as served:
        reply = await ask(served.port, PATH, b"", f"X-Request-Id: {sane}")
        assert (reply.fields["x-request-id"], reply.json["id"]) == (sane, sane)


@pytest.mark.parametrize("insane", ["", "a b", "a\tb", "x" * 129, "\xe9", "a/b", "a, b"])
async def test_another_request_id_is_replaced(insane: str) -> None:
    async with serving(echo) as served:
        reply = await ask(served.port, PATH, b"", f"X-Request-Id: {insane}")
        assert re.fullmatch(MADE_ID, reply.fields["x-request-id"])


async def test_a_request_without_an_id_gets_one() -> None:
    async with serving(echo) as served:
        ids = {(await ask(served.port, PATH, b"")).json["id"] for _ in range(3)}
        assert len(ids) == 3
        assert all(re.fullmatch(MADE_ID, each) for each in ids)


async def test_two_live_requests_never_have_the_same_id() -> None:
    gate = Gate()
    async with serving(gate) as served, asyncio.TaskGroup() as group:
        asked = [
            group.create_task(ask(served.port, PATH, b"", f"X-Request-Id: {'i' * 128}"))
            for _ in range(3)
        ]
        await eventually(lambda: gate.started == 3, what="all three are handled")
        gate.opened.set()
        ids = sorted([(await each).json["id"] for each in asked], key=len)
        assert ids[-1] == "i" * 128
        assert all(re.fullmatch(r"i{100}\.[0-9a-f]{8}", each) for each in ids[:-1])
        assert len(set(ids)) == 3


# --- handlers that fail -----------------------------------------------------------------------


async def test_an_error_of_the_tree_becomes_its_reply() -> None:
    async def refuse(_request: InboundRequest, _client: ClientStream) -> None:
        raise errors.QueueFull("full", retry_after_s=2)

    async with serving(refuse) as served, connected(served.port) as client:
        for _ in range(2):
            reply = await client.post(PATH, b"", "X-Request-Id: one")
            assert (reply.status, reply.fields["retry-after"]) == (429, "2")
            assert reply.error["request_id"] == reply.fields["x-request-id"] == "one"


async def test_a_handler_with_a_bug_ends_only_its_own_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def stumble(request: InboundRequest, client: ClientStream) -> None:
        if request.body == b"bad":
            raise ZeroDivisionError
        if request.body == b"unspeakable":
            client.send(Reply(status=200, body=b"", fields=(("X", "a\r\nb"),)))
        await echo(request, client)

    async with serving(stumble) as served:
        for body in (b"bad", b"unspeakable"):
            reply = await ask(served.port, PATH, body)
            assert (reply.status, reply.error["code"]) == (500, "internal_error")
            assert "journal" in reply.error["message"]
        assert (await ask(served.port, PATH, b"good")).status == 200
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.ERROR]


async def test_what_utf_8_cannot_say_in_an_error_ends_only_its_own_request() -> None:
    """`{"model": "\\ud800"}` from any client stopped the whole gateway."""

    async def refuse(_request: InboundRequest, _client: ClientStream) -> None:
        raise errors.UnknownAlias("\ud800", ())

    async with serving(refuse) as served:
        for _ in range(2):
            reply = await ask(served.port, PATH, b"")
            assert (reply.status, reply.error["code"]) == (404, "model_not_found")


async def test_a_request_that_ends_before_its_first_step_is_not_counted_for_ever() -> None:
    async with serving(Gate()) as served, connected(served.port) as client:
        served.inbound.make_job = partial(CancelledAtOnce, Gate())
        await client.send(post(PATH, b""))
        await eventually(lambda: not served.inbound.live, what="nothing is live")


class CancelledAtOnce(HandlerJob):
    """A job that ends as soon as it has begun."""

    def begin(self, scope: TaskScope, on_end: Callable[[RequestId], None]) -> None:
        super().begin(scope, on_end)
        self.cancel()


# --- draining ---------------------------------------------------------------------------------


async def test_draining_closes_idle_connections_at_once() -> None:
    async with serving(echo) as served, connected(served.port) as idle:
        assert (await idle.post(PATH, b"a")).status == 200
        await asyncio.wait_for(served.inbound.drain(60), 1)
        assert await idle.rest() == b""


async def test_draining_answers_a_client_that_was_accepted_just_before() -> None:
    async with serving(echo) as served, connected(served.port) as new:
        await eventually(lambda: served.inbound.connections, what="it is accepted")
        async with asyncio.TaskGroup() as group:
            drained = group.create_task(served.inbound.drain(60))
            await eventually(lambda: served.inbound.draining, what="draining has begun")
            reply = await new.post(PATH, b"a")
            assert (reply.status, reply.fields["connection"]) == (200, "close")
            await asyncio.wait_for(drained, 1)


async def test_draining_waits_only_so_long_for_a_first_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inbound, "FIRST_REQUEST_S", 0.05)
    async with serving(echo) as served, connected(served.port) as silent:
        await eventually(lambda: served.inbound.connections, what="it is accepted")
        await asyncio.wait_for(served.inbound.drain(60), 1)
        assert await silent.rest() == b""


async def test_draining_lets_requests_finish_and_tells_their_clients_to_go() -> None:
    gate = Gate()
    async with (
        serving(gate) as served,
        connected(served.port) as client,
        connected(served.port) as sending,
        asyncio.TaskGroup() as group,
    ):
        await client.send(post(PATH, b"a"))
        await sending.send(request("POST", PATH, "Content-Length: 3") + b"ab")
        await eventually(lambda: len(served.inbound.connections) == 2, what="both are there")
        await eventually(lambda: gate.started, what="the request is handled")
        drained = group.create_task(served.inbound.drain(60))
        await eventually(lambda: served.inbound.draining, what="draining has begun")
        gate.opened.set()
        await sending.send(b"c")
        for each, body in ((client, "a"), (sending, "abc")):
            reply = await each.reply()
            assert (reply.json["body"], reply.fields["connection"]) == (body, "close")
            assert await each.rest() == b""
        await asyncio.wait_for(drained, 1)


async def test_a_request_is_over_only_when_its_client_has_the_whole_reply() -> None:
    """A daemon that ended right after its last handler cut off what was still in its buffers."""
    size = 30_000_000
    written = asyncio.Event()

    async def answer_much(_request: InboundRequest, client: ClientStream) -> None:
        client.send(Reply(status=200, body=b"a" * size))
        written.set()

    async with (
        serving(answer_much) as served,
        connected(served.port) as client,
        asyncio.TaskGroup() as group,
    ):
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(post(PATH, b""))
        await written.wait()
        drained = group.create_task(served.inbound.drain(60))
        await asyncio.wait([drained], timeout=0.05)
        assert not drained.done()
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert len((await client.reply()).body) == size
        await asyncio.wait_for(drained, 1)


async def test_a_request_that_takes_too_long_is_told_that_the_daemon_stops() -> None:
    async with serving(Gate()) as served, connected(served.port) as client:
        await client.send(post(PATH, b""))
        await eventually(lambda: served.inbound.live, what="the request is handled")
        await asyncio.wait_for(served.inbound.drain(0.05), 1)
        reply = await client.reply()
        assert (reply.status, reply.error["reason"]) == (503, "stopping")
        assert await client.rest() == b""


async def test_a_drain_in_no_hurry_answers_on_connections_that_are_kept() -> None:
    """A request that crosses the end of an idle connection would be lost."""
    async with serving(echo) as served, connected(served.port) as client:
        assert (await client.post(PATH, b"a")).fields["connection"] == "keep-alive"
        async with asyncio.TaskGroup() as group:
            drained = group.create_task(served.inbound.drain(None))
            await eventually(lambda: served.inbound.draining, what="draining has begun")
            reply = await client.post(PATH, b"b")
            assert (reply.status, reply.fields["connection"]) == (200, "close")
            await asyncio.wait_for(drained, 1)


async def test_a_drain_in_no_hurry_may_close_idle_connections_at_once() -> None:
    async with serving(echo) as served, connected(served.port) as idle:
        await idle.post(PATH, b"a")
        served.inbound.keeps_idle = False
        await asyncio.wait_for(served.inbound.drain(None), 1)
        assert await idle.rest() == b""


async def test_a_drain_in_no_hurry_does_not_wait_for_silent_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inbound, "NEXT_REQUEST_S", 0.05)
    async with serving(echo) as served, connected(served.port) as silent:
        await silent.post(PATH, b"a")
        await asyncio.wait_for(served.inbound.drain(None), 1)
        assert await silent.rest() == b""


async def test_a_drain_may_be_hurried() -> None:
    async with (
        serving(Gate()) as served,
        connected(served.port) as idle,
        connected(served.port) as client,
        asyncio.TaskGroup() as group,
    ):
        await client.send(post(PATH, b""))
        await eventually(lambda: len(served.inbound.connections) == 2, what="both are there")
        await eventually(lambda: served.inbound.live, what="the request is handled")
        drained = group.create_task(served.inbound.drain(None))
        await eventually(lambda: served.inbound.draining, what="draining has begun")
        assert not drained.done()
        served.inbound.hurry(0.05)
        await asyncio.wait_for(drained, 1)
        assert (await client.reply()).error["reason"] == "stopping"
        assert await idle.rest() == b""


async def test_draining_is_bounded_whatever_clients_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound, "LAST_WORDS_S", 0.05)

    async def answer_much(_request: InboundRequest, client: ClientStream) -> None:
        client.send(Reply(status=200, body=b"a" * 30_000_000))

    async with (
        serving(answer_much) as served,
        connected(served.port) as takes_nothing,
        connected(served.port) as sends_half,
    ):
        takes_nothing.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await takes_nothing.send(post(PATH, b""))
        await sends_half.send(b"POST /v1")
        await eventually(lambda: len(served.inbound.connections) == 2, what="both are there")
        await asyncio.wait_for(served.inbound.drain(0.05), 1)
        with suppress(ConnectionError):
            assert await sends_half.rest() == b""
        await eventually(lambda: not served.inbound.connections, what="no connection is left")
