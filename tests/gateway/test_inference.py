"""Who may ask for what, and the one record of each request."""

import gc
import logging
import re
from typing import Any

import pytest

from rolemesh.gateway.inference import InferenceJob
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.edit import RequestBody
from rolemesh.relay.exchange import Exchange
from rolemesh.relay.job import Job
from rolemesh.relay.response import ResponseReader
from rolemesh.runtime.journal import FIELDS
from tests.fakes.upstream import (
    CHUNKED_STREAM,
    LAST_CHUNK,
    answers,
    chunk,
    sends,
    sends_and_closes,
    sends_and_hangs,
)
from tests.gateway.conftest import StartGateway, StartUpstream
from tests.gateway.harness import CHAT, DISCOVERED, Running, asking
from tests.lab.poll import eventually

OK = answers(b'{"ok": true}')
KEYS = {
    "client_api_keys": ["any-key"],
    "clients": {"ci": {"key": "ci-key", "roles": ["critic"]}},
}


def bearer(key: str) -> str:
    return f"Authorization: Bearer {key}"


def records(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the fields of the requests' records."""
    return [
        getattr(record, FIELDS)
        for record in caplog.records
        if record.name == "rolemesh.gateway.inference"
    ]


@pytest.fixture
async def box(start_gateway: StartGateway, start_upstream: StartUpstream) -> Running:
    """Return a gateway with a node that answers for coder, which is the default."""
    gateway = await start_gateway(default_model="coder")
    await gateway.register("box", await start_upstream(OK))
    return gateway


@pytest.mark.parametrize("body", [b"{}", b'{"model": null}', b'{"model": ""}'])
async def test_a_request_without_a_model_gets_the_default(box: Running, body: bytes) -> None:
    reply = await box.post(CHAT, body)
    assert (reply.status, reply.fields["x-rolemesh-model"]) == (200, "m")


async def test_without_a_default_a_model_must_be_named(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    reply = await gateway.post(CHAT, b"{}")
    assert (reply.status, reply.error["param"]) == (400, "model")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"model": "poet"}', 404, "model_not_found"),
        (b'{"model": "\\ud800"}', 404, "model_not_found"),
        (b'{"model": "m"}', 404, "model_not_found"),
        (b'{"model": 7}', 400, "bad_request"),
        (b'{"model": "coder", "n": 1000000}', 400, "bad_request"),
        (b"[1]", 400, "bad_request"),
        (b"{", 400, "bad_request"),
        (b"", 400, "bad_request"),
        (b'{"a": "\xff"}', 400, "bad_request"),
        (b'{"a":' + b"[" * 50_000, 400, "bad_request"),
    ],
)
async def test_what_cannot_be_done_as_asked_is_refused_and_the_gateway_lives(
    box: Running, body: bytes, status: int, code: str
) -> None:
    for _ in range(2):
        reply = await box.post(CHAT, body)
        assert (reply.status, reply.error["code"]) == (status, code)
    assert (await box.chat()).status == 200


@pytest.mark.parametrize(
    ("key", "alias", "status", "code"),
    [
        (None, "coder", 401, "invalid_api_key"),
        ("wrong", "coder", 401, "invalid_api_key"),
        ("any-key", "coder", 200, None),
        ("any-key", "critic", 200, None),
        ("ci-key", "critic", 200, None),
        ("ci-key", "coder", 403, "not_allowed"),
        ("ci-key", "poet", 403, "not_allowed"),
    ],
)
async def test_a_key_opens_the_aliases_it_is_for(
    start_gateway: StartGateway,
    start_upstream: StartUpstream,
    key: str | None,
    alias: str,
    status: int,
    code: str | None,
) -> None:
    up = await start_upstream(OK)
    proxy = {"type": "proxy", "proxy_url": up.url}
    gateway = await start_gateway(auth=KEYS, models={"coder": proxy, "critic": proxy})
    reply = await gateway.chat(alias, *([bearer(key)] if key else []))
    assert reply.status == status
    if code:
        assert reply.error["code"] == code
        assert up.conversations == []


async def test_without_keys_a_web_page_from_elsewhere_is_refused(box: Running) -> None:
    reply = await box.chat("coder", "Origin: http://evil.example")
    assert (reply.status, reply.error["code"]) == (403, "not_allowed")


async def test_an_answered_request_leaves_one_record(
    box: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await box.chat("coder", "X-Request-Id: id-1", secret="never logged")
    await eventually(lambda: records(caplog), what="the record is there")
    (record,) = records(caplog)
    for name in ("queue_ms", "first_byte_ms", "total_ms"):
        assert 0 <= record.pop(name) < 5000
    assert record == {
        "request_id": "id-1",
        "status": 200,
        "client": "-",
        "path": CHAT,
        "phase": "done",
        "alias": "coder",
        "role": "coder",
        "node": "box",
        "model_id": "m",
        "attempts": 1,
    }
    assert "never logged" not in caplog.text
    assert re.search(r"coder -> m on box: 200 in \d+ ms", caplog.text)


@pytest.mark.parametrize(
    ("key", "alias", "status", "client", "phase"),
    [
        (None, "coder", 401, "-", "accept"),
        ("ci-key", "coder", 403, "ci", "accept"),
        ("any-key", "critic", 503, None, "queue"),
    ],
)
async def test_a_refused_request_leaves_its_record_too(
    start_gateway: StartGateway,
    caplog: pytest.LogCaptureFixture,
    key: str | None,
    alias: str,
    status: int,
    client: str | None,
    phase: str,
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await start_gateway(auth=KEYS, models={"critic": DISCOVERED})
    await gateway.chat(alias, *([bearer(key)] if key else []))
    await eventually(lambda: records(caplog), what="the record is there")
    (record,) = records(caplog)
    assert (record["status"], record["phase"]) == (status, phase)
    assert record["reason"]
    assert client is None or record["client"] == client
    assert "any-key" not in caplog.text


async def test_a_client_that_left_is_recorded_as_such(
    start_gateway: StartGateway, start_upstream: StartUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await start_gateway()
    up = await start_upstream(sends_and_hangs())
    await gateway.register("box", up)
    async with asking(gateway) as client:
        await eventually(lambda: up.conversations, what="the node was asked")
        client.half_close()
        await eventually(lambda: records(caplog), what="the record is there", deadline_s=1)
    (record,) = records(caplog)
    assert (record["status"], record["node"], record["attempts"]) == (499, "box", 1)
    assert record["phase"] == "upstream"


async def test_a_broken_stream_is_recorded_by_how_it_ended(
    start_gateway: StartGateway, start_upstream: StartUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await start_gateway()
    up = await start_upstream(sends_and_closes(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell"))
    await gateway.register("box", up)
    async with asking(gateway) as client:
        assert (await client.rest()).endswith(b"hell")
    await eventually(lambda: records(caplog), what="the record is there")
    assert (records(caplog)[0]["status"], records(caplog)[0]["phase"]) == (502, "stream")


STREAM = CHUNKED_STREAM + chunk(b"data: 1\n\n")


async def test_while_an_answer_is_under_way_nobody_holds_on_to_the_prompt(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway()
    await gateway.register("box", await start_upstream(sends_and_hangs(STREAM)))
    async with asking(gateway, prompt="x" * 100_000) as client:
        await client.reader.readuntil(b"data: 1")
        (job,) = gateway.gateway._inbound.live.values()
        assert job.request.body == b""
        assert isinstance(job, InferenceJob)
        assert job.body.get("prompt") is None


def of_requests() -> list[object]:
    """Return all objects there are that belong to a request."""
    kinds = (Job, Exchange, ClientStream, InboundRequest, RequestBody, ResponseReader)
    return [each for each in gc.get_objects() if isinstance(each, kinds)]


async def test_requests_leave_nothing_behind_for_the_garbage_collector(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    """It looks rarely: what each request left would pile up."""
    gateway = await start_gateway()
    up = await start_upstream(
        OK,
        sends(STREAM + LAST_CHUNK),
        sends_and_closes(STREAM),
        answers(b"no", 500),
        sends_and_hangs(STREAM),
    )
    await gateway.register("box", up)
    gc.collect()
    before = of_requests()
    gc.disable()
    try:
        for _ in range(2):
            async with asking(gateway, stream=True) as client:
                assert (await client.reply()).status == 200
        async with asking(gateway, stream=True) as client:
            assert b"upstream_broke" in await client.rest()
        async with asking(gateway, stream=True) as client:
            assert (await client.reply()).status == 500
        async with asking(gateway, stream=True) as client:
            await client.reader.readuntil(b"data: 1")
        assert (await gateway.chat("nobody")).status == 404
        await eventually(lambda: not gateway.gateway._inbound.live, what="all have ended")
        await eventually(lambda: len(of_requests()) <= len(before), what="nothing is left")
    finally:
        gc.enable()
