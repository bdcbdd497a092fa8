"""One attempt whose answer is taken whole, over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from rolemesh.config.settings import Timeouts
from rolemesh.errors import ConnectFailed, UpstreamBroke, UpstreamTimeout
from rolemesh.names import RequestId
from rolemesh.relay.assembly import REPLY_LIMIT_BYTES
from rolemesh.relay.attempt import attempt
from rolemesh.relay.choices import ChoicesAssembly
from rolemesh.relay.client import ClientStream
from rolemesh.relay.collect import Collection
from rolemesh.relay.replies import Reply
from rolemesh.relay.upstream import UpstreamPool
from tests.fakes.upstream import (
    CHUNKED_STREAM,
    EVENT_STREAM,
    LAST_CHUNK,
    Script,
    Upstream,
    answers,
    chunk,
    every_byte,
    reply,
    sends,
    sends_and_closes,
    sends_and_hangs,
    sends_and_resets,
    upstream,
)
from tests.lab.poll import eventually

BODY = b'{"stream": true}'
HEAD = b"POST /v1/completions HTTP/1.1\r\nX-A: 1\r\nContent-Length: %d\r\n\r\n" % len(BODY)
PING = b": ping\n\n"
EVENT = b'data: {"choices": [{"index": 0, "text": "He"}], "id": "x"}\n\n'
LAST = b'data: {"choices": [{"index": 0, "text": "llo", "finish_reason": "stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"code":503,"message":"no"}}\n\n'
PROGRESS = b'data: {"choices": [{"index": 0, "text": ""}], "prompt_progress": {}}\n\n'
WHOLE = {"choices": [{"index": 0, "text": "Hello", "finish_reason": "stop"}], "id": "x"}
CLOSE_STREAM = EVENT_STREAM + b"\r\n"


def stream(*events: bytes) -> bytes:
    return CHUNKED_STREAM + b"".join(map(chunk, events)) + LAST_CHUNK


ANSWER = stream(EVENT, LAST, DONE)


@asynccontextmanager
async def open_pool() -> AsyncIterator[UpstreamPool]:
    pool = UpstreamPool()
    try:
        yield pool
    finally:
        pool.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    reply: Reply
    first_byte_at: float


class Nobody:
    """The connection of a client to which nothing may be written."""

    gone = is_stalled = False
    keeps_alive = True

    def __getattr__(self, name: str) -> Any:
        return lambda *_: pytest.fail(f"{name} was called")


async def take(
    up: Upstream,
    pool: UpstreamPool,
    *,
    first_byte_s: float = 30.0,
    idle_s: float = 30.0,
    total_s: float = 60.0,
) -> Collected:
    ended, first_byte_at = await attempt(
        pool,
        up.address,
        ClientStream(Nobody(), RequestId("id-1"), 1),
        (HEAD, BODY),
        timeouts=Timeouts(connect_s=5.0, first_byte_s=first_byte_s, idle_s=idle_s),
        deadline=asyncio.get_running_loop().time() + total_s,
        added=b"",
        kind=partial(Collection, assembly=ChoicesAssembly),
    )
    if isinstance(ended, Reply):
        return Collected(reply=ended, first_byte_at=first_byte_at)
    assert ended is not None
    raise ended


async def collected(script: Script, **bounds: float) -> Collected:
    async with upstream(script) as up, open_pool() as pool:
        return await take(up, pool, **bounds)


def begun(pool: UpstreamPool) -> bool:
    return not any(each.awaits_first_byte for each in pool.attempts.items)


# --- whole answers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        sends(ANSWER),
        sends(*every_byte(ANSWER)),
        sends(stream(PING, EVENT, PING, LAST, DONE, PING)),
        sends(stream(PROGRESS, EVENT + LAST, DONE)),
        sends_and_closes(CLOSE_STREAM + EVENT + LAST, DONE),
        sends(
            EVENT_STREAM + b"Content-Length: %d\r\n\r\n" % len(EVENT + LAST + DONE),
            EVENT + LAST + DONE,
        ),
    ],
)
async def test_a_stream_becomes_the_plain_reply(script: Script) -> None:
    answer = (await collected(script)).reply
    assert (answer.status, json.loads(answer.body)) == (200, WHOLE)
    assert dict(answer.fields) == {"Content-Type": "application/json; charset=utf-8"}


async def test_the_request_is_sent_as_it_is_given() -> None:
    async with upstream(sends(ANSWER)) as up, open_pool() as pool:
        await take(up, pool)
        (conversation,) = up.conversations
        assert conversation.method_and_path == "POST /v1/completions"
        assert conversation.fields["x-a"] == "1"
        assert conversation.body == BODY


async def test_the_first_byte_is_that_of_the_answer_and_not_of_comments_or_progress() -> None:
    go, loop = asyncio.Event(), asyncio.get_running_loop()

    async def script(conversation: Any) -> None:
        await conversation.send(CHUNKED_STREAM, chunk(PING), chunk(PROGRESS))
        await go.wait()
        await conversation.send(chunk(EVENT), chunk(LAST), chunk(DONE), LAST_CHUNK)

    async with upstream(script) as up, open_pool() as pool, asyncio.TaskGroup() as group:
        taking = group.create_task(take(up, pool))
        await eventually(lambda: up.conversations, what="the request is there")
        released_at = loop.time()
        go.set()
        assert (await taking).first_byte_at >= released_at


@pytest.mark.parametrize("status", [200, 400, 404, 500, 503])
async def test_an_answer_that_is_no_stream_passes_as_it_came(status: int) -> None:
    body = b'{"error": {"code": 400}}'
    for script in (
        answers(body, status, fields=b"Retry-After: 7\r\nX-Other: 1\r\n"),
        sends(*every_byte(reply(body, status, fields=b"Retry-After: 7\r\n"))),
    ):
        answer = (await collected(script)).reply
        assert (answer.status, answer.body) == (status, body)
        assert dict(answer.fields) == {"Content-Type": "application/json", "Retry-After": "7"}


async def test_an_answer_without_a_body() -> None:
    answer = (await collected(answers(b"", 503))).reply
    assert (answer.status, answer.body) == (503, b"")


async def test_an_error_event_is_the_answer_with_its_status() -> None:
    for script in (sends(stream(EVENT, ERROR)), sends(stream(ERROR)), sends(stream(ERROR, DONE))):
        answer = (await collected(script)).reply
        assert (answer.status, json.loads(answer.body)["error"]["message"]) == (503, "no")


# --- connections ------------------------------------------------------------------------------


async def test_a_connection_serves_again_after_a_whole_answer() -> None:
    async with upstream(sends(ANSWER)) as up, open_pool() as pool:
        for _ in range(3):
            await take(up, pool)
        assert up.accepted == 1


async def test_an_idle_connection_that_died_is_replaced_by_a_fresh_one_once() -> None:
    async def dies(conversation: Any) -> None:
        conversation.close()

    async with upstream(sends(ANSWER), dies, sends(ANSWER)) as up, open_pool() as pool:
        await take(up, pool)
        assert json.loads((await take(up, pool)).reply.body) == WHOLE
        assert up.accepted == 2


async def test_a_fresh_connection_that_dies_is_not_replaced() -> None:
    async with upstream(sends_and_closes(), sends(ANSWER)) as up, open_pool() as pool:
        with pytest.raises(UpstreamBroke):
            await take(up, pool)
        assert up.accepted == 1


async def test_a_reused_connection_that_dies_in_the_answer_is_not_replaced() -> None:
    dies = sends_and_closes(CHUNKED_STREAM, chunk(EVENT))
    async with upstream(sends(ANSWER), dies, sends(ANSWER)) as up, open_pool() as pool:
        await take(up, pool)
        with pytest.raises(UpstreamBroke):
            await take(up, pool)
        assert len(up.conversations) == 2


async def test_an_upstream_that_is_not_there_was_sent_nothing() -> None:
    async with upstream(sends(ANSWER)) as up:
        pass
    async with open_pool() as pool:
        with pytest.raises(ConnectFailed):
            await take(up, pool)


async def test_cancelling_closes_the_connection() -> None:
    hung_up = asyncio.Event()

    async def script(conversation: Any) -> None:
        await conversation.send(CHUNKED_STREAM, chunk(EVENT))
        await conversation.hung_up()
        hung_up.set()

    async with upstream(script) as up, open_pool() as pool:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(take(up, pool), timeout=0.1)
        await asyncio.wait_for(hung_up.wait(), timeout=10)


# --- faults -----------------------------------------------------------------------------------

BROKEN = [
    sends_and_closes(),
    sends_and_closes(b"HTTP/1.1 200"),
    sends_and_closes(reply(b"hello")[:-1]),
    sends_and_closes(CHUNKED_STREAM + chunk(EVENT)),
    sends_and_closes(CHUNKED_STREAM + chunk(EVENT + LAST + DONE)),
    sends_and_closes(CLOSE_STREAM + EVENT + LAST),
    sends_and_resets(CHUNKED_STREAM + chunk(EVENT)),
    sends(b"garbage\r\n\r\n"),
    sends(CHUNKED_STREAM + chunk(EVENT) + b"zz\r\n"),
    sends(stream(EVENT, b'data: {"choices": \n\n', LAST, DONE)),
    sends(stream(EVENT, b"data: [1]\n\n")),
    sends(stream(EVENT, LAST)),
    sends(stream(EVENT, LAST, DONE, EVENT)),
    sends(stream()),
    sends(stream(PING)),
    sends(ANSWER + b"HTTP/1.1 200 OK\r\n\r\n"),
]


@pytest.mark.parametrize("script", BROKEN)
async def test_what_breaks_is_a_broken_upstream_and_its_connection_is_closed(
    script: Script,
) -> None:
    async with upstream(script) as up, open_pool() as pool:
        with pytest.raises(UpstreamBroke) as caught:
            await take(up, pool)
        assert caught.value.upstream == up.url
        assert pool.take_idle(up.address) is None
        await eventually(lambda: not up.writers, what="the connection closed")


async def test_bytes_behind_the_end_of_an_answer_end_the_connection() -> None:
    async with upstream(sends(ANSWER, b"\r\n"), sends(ANSWER)) as up, open_pool() as pool:
        await take(up, pool)
        await eventually(lambda: not up.writers, what="the connection closed")
        assert json.loads((await take(up, pool)).reply.body) == WHOLE


async def test_an_answer_has_a_limit() -> None:
    too_much = reply(b"a" * (REPLY_LIMIT_BYTES + 1))
    with pytest.raises(UpstreamBroke, match="larger than"):
        await collected(sends_and_hangs(too_much))


async def test_who_waits_is_told_that_the_upstream_is_gone_but_an_answer_goes_on() -> None:
    go = asyncio.Event()

    async def begins(conversation: Any) -> None:
        await conversation.send(CHUNKED_STREAM, chunk(EVENT))
        await go.wait()
        await conversation.send(chunk(LAST), chunk(DONE), LAST_CHUNK)

    async def wait_in_vain() -> None:
        with pytest.raises(UpstreamBroke, match="not heard of"):
            await take(up, pool)

    async with (
        upstream(begins, sends_and_hangs()) as up,
        open_pool() as pool,
        asyncio.TaskGroup() as group,
    ):
        answered = group.create_task(take(up, pool))
        await eventually(lambda: up.conversations, what="the first is there")
        await eventually(lambda: begun(pool), what="its answer has begun")
        group.create_task(wait_in_vain())
        await eventually(lambda: len(up.conversations) == 2, what="the second is there")
        pool.give_up(up.address)
        go.set()
        assert (await answered).reply.status == 200


# --- time -------------------------------------------------------------------------------------


async def progress_only(conversation: Any) -> None:
    await conversation.send(CHUNKED_STREAM)
    await repeats(conversation, chunk(PROGRESS), chunk(PING))


async def one_event_then_pings(conversation: Any) -> None:
    await conversation.send(CHUNKED_STREAM, chunk(EVENT))
    await repeats(conversation, chunk(PING))


async def repeats(conversation: Any, *pieces: bytes) -> None:
    try:
        while True:
            await conversation.send(*pieces)
            await asyncio.sleep(0.01)
    except ConnectionError:
        return


@pytest.mark.parametrize(
    ("script", "bounds", "limit"),
    [
        (sends_and_hangs(), {"first_byte_s": 0.1}, "first_byte_s"),
        (sends_and_hangs(CHUNKED_STREAM), {"first_byte_s": 0.1}, "first_byte_s"),
        (progress_only, {"first_byte_s": 0.1}, "first_byte_s"),
        (sends_and_hangs(CHUNKED_STREAM + chunk(EVENT)), {"idle_s": 0.1}, "idle_s"),
        (one_event_then_pings, {"idle_s": 0.1}, "idle_s"),
        (one_event_then_pings, {"total_s": 0.1}, "total_s"),
        (sends_and_hangs(), {"total_s": 0.1}, "total_s"),
    ],
)
async def test_what_is_late_ends_with_the_name_of_its_limit(
    script: Script, bounds: dict[str, float], limit: str
) -> None:
    async with upstream(script) as up, open_pool() as pool:
        with pytest.raises(UpstreamTimeout) as caught:
            await take(up, pool, **bounds)
        assert caught.value.limit == limit
        await eventually(lambda: not up.writers, what="the connection closed")


async def test_an_answer_that_goes_on_is_never_late() -> None:
    async def script(conversation: Any) -> None:
        await conversation.send(CHUNKED_STREAM)
        for _ in range(10):
            await conversation.send(chunk(EVENT))
            await asyncio.sleep(0.02)
        await conversation.send(chunk(DONE), LAST_CHUNK)

    answer = (await collected(script, idle_s=0.1, first_byte_s=0.1)).reply
    assert json.loads(answer.body)["choices"][0]["text"] == "He" * 10
