"""Answers that name the alias as their model."""

import json
from functools import partial
from typing import Any

import pytest

from rolemesh.errors import StreamBroken, UpstreamBroke
from rolemesh.relay.assembly import REPLY_LIMIT_BYTES
from rolemesh.relay.echo import EchoExchange, renamed
from rolemesh.relay.replies import Reply
from tests.fakes.client import Received, ask, connected, post
from tests.fakes.serving import Relay, serving
from tests.fakes.upstream import (
    CHUNKED_STREAM,
    EVENT_STREAM,
    LAST_CHUNK,
    Script,
    answers,
    chunk,
    every_byte,
    reply,
    sends,
    sends_and_closes,
    sends_and_resets,
    upstream,
)

PATH = "/v1/completions"
CLOSE_STREAM = EVENT_STREAM + b"\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"

EVENTS = (
    b": ping\n\n",
    b'data: {"model":"m-gguf","choices":[{"text":"\\"model\\": \\"x\\""}]}\n\n',
    b'event: message_start\r\ndata:{"message":{"model":"m-gguf","n":1.0}}\r\n\r\n',
    b'data: {"response": {"model": "m-gguf"}}\n\n',
    b'data: {"response": "model", "message": ["model"]}\n\n',
    b"data: [DONE]\n\n",
)
RENAMED = (
    b": ping\n\n"
    b'data: {"model":"coder","choices":[{"text":"\\"model\\": \\"x\\""}]}\n\n'
    b'event: message_start\r\ndata:{"message":{"model":"coder","n":1.0}}\r\n\r\n'
    b'data: {"response":{"model":"coder"}}\n\n'
    b'data: {"response":"model","message":["model"]}\n\n'
    b"data: [DONE]\n\n"
)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (b'{"model":"m","x":1.0}', b'{"model":"coder","x":1.0}'),
        (b'{"a": [ {"model": "m"} ]}', b'{"a":[ {"model": "m"} ]}'),
        (b'{"model":null}', b'{"model":null}'),
        (b'{"x": 1}', b'{"x": 1}'),
        (b'[{"model":"m"}]', b'[{"model":"m"}]'),
        (b'{"model":', b'{"model":'),
        (b"", b""),
    ],
)
def test_only_the_value_of_model_changes(document: bytes, expected: bytes) -> None:
    assert renamed(document, "coder") == expected


def test_a_name_may_be_any_text() -> None:
    name = 'c\u00f6der "\u65e5"'
    assert json.loads(renamed(b'{"model":"m"}', name)) == {"model": name}


async def relayed(
    script: Script, minor: int = 1, limit_bytes: int = REPLY_LIMIT_BYTES
) -> tuple[Received, Any]:
    """Ask once; returns what the client got and what the attempt came to."""
    async with upstream(script) as up:
        kind = partial(EchoExchange, name="coder", limit_bytes=limit_bytes)
        fields = (("X-RoleMesh-Node", "box"),)
        relay = Relay(upstream=up, kind=kind, reply_fields=fields)
        async with serving(relay) as served:
            served.inbound.allowed_origins = ("*",)
            if minor:
                received = await ask(served.port, PATH, b"{}", "Origin: http://page")
            else:
                async with connected(served.port) as client:
                    await client.send(b"POST /completions HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
                    received = await client.reply()
        return received, relay.results[0]


PLAIN = b'{"model":"m-gguf","x":1.0}'


@pytest.mark.parametrize("minor", [0, 1])
@pytest.mark.parametrize(
    "script",
    [
        answers(PLAIN),
        sends(*every_byte(reply(PLAIN))),
        sends(CHUNKED + chunk(PLAIN[:9]), chunk(PLAIN[9:]) + LAST_CHUNK),
        sends_and_closes(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\n", PLAIN[:9], PLAIN[9:]),
    ],
)
async def test_a_plain_answer_gets_the_length_it_has_now(script: Script, minor: int) -> None:
    received, result = await relayed(script, minor)
    assert (received.body, result) == (b'{"model":"coder","x":1.0}', None)
    assert received.fields["content-length"] == str(len(received.body))
    assert "transfer-encoding" not in received.fields
    assert received.fields["x-rolemesh-node"] == "box"
    assert ("access-control-allow-origin" in received.fields) == bool(minor)


@pytest.mark.parametrize("minor", [0, 1])
@pytest.mark.parametrize(
    "script",
    [
        sends(CHUNKED_STREAM, *map(chunk, EVENTS), LAST_CHUNK),
        sends(*every_byte(CHUNKED_STREAM + b"".join(map(chunk, EVENTS)) + LAST_CHUNK)),
        sends(CHUNKED_STREAM + b"".join(map(chunk, every_byte(b"".join(EVENTS)))) + LAST_CHUNK),
        sends_and_closes(CLOSE_STREAM, *EVENTS),
    ],
)
async def test_each_event_of_a_stream_names_the_alias(script: Script, minor: int) -> None:
    received, result = await relayed(script, minor)
    assert (received.body, result) == (RENAMED, None)
    assert ("transfer-encoding" in received.fields) == bool(minor)


async def test_a_last_line_without_an_end_passes_too() -> None:
    script = sends(CHUNKED_STREAM + chunk(b'data: {}\n\ndata: {"model"') + LAST_CHUNK)
    received, _ = await relayed(script)
    assert received.body == b'data: {}\n\ndata: {"model"'


async def test_a_stream_that_breaks_ends_with_an_error_event_and_no_last_chunk() -> None:
    script = sends_and_resets(CHUNKED_STREAM + chunk(EVENTS[1]) + chunk(b"data: {half"))
    async with upstream(script) as up:
        relay = Relay(upstream=up, kind=partial(EchoExchange, name="coder"))
        async with serving(relay) as served, connected(served.port) as client:
            await client.send(post(PATH, b"{}"))
            got = await client.rest()
    assert isinstance(relay.results[0], StreamBroken)
    assert b'"model":"coder"' in got
    assert b"half" not in got
    assert got.endswith(b"\n\n\r\n")
    assert b'"code": "upstream_broke"' in got.split(b"data: ")[-1]


async def test_a_plain_answer_that_breaks_is_an_error_reply() -> None:
    received, result = await relayed(sends_and_closes(CHUNKED + chunk(PLAIN[:9])))
    assert isinstance(result, UpstreamBroke | StreamBroken)
    assert received.status == 502
    assert json.loads(received.body)["error"]["code"] == "upstream_broke"


async def test_a_plain_answer_has_its_bounds() -> None:
    script = sends(CHUNKED + chunk(PLAIN) + LAST_CHUNK)
    received, _ = await relayed(script, limit_bytes=20)
    assert received.status == 502


async def test_a_line_without_end_passes_as_it_comes() -> None:
    script = sends(CHUNKED_STREAM + chunk(b"data: " + b"x" * 30), chunk(b"y") + LAST_CHUNK)
    received, _ = await relayed(script, limit_bytes=20)
    assert received.body == b"data: " + b"x" * 30 + b"y"


@pytest.mark.parametrize("status", [400, 503])
async def test_what_is_no_answer_passes_as_it_is(status: int) -> None:
    body = b'{"error":{"x":"model"}}'
    received, result = await relayed(answers(body, status=status))
    assert (received.status, received.body) == (status, body)
    assert (result is None) == (status != 503)
    assert result is None or isinstance(result, Reply)
