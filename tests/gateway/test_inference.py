"""Who may ask for what, and the one record of each request."""

import asyncio
import gc
import json
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
from tests.fakes.client import connected, post
from tests.fakes.upstream import (
    CHUNKED_STREAM,
    LAST_CHUNK,
    Script,
    answers,
    chunk,
    sends,
    sends_and_closes,
    sends_and_hangs,
    sends_and_resets,
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


@pytest.mark.parametrize(
    ("script", "status", "body"),
    [
        (OK, 200, {}),
        (sends(STREAM + LAST_CHUNK), 200, {"stream": True}),
        (answers(b"no", 500), 500, {}),
    ],
)
async def test_a_page_of_an_allowed_origin_may_read_every_answer(
    start_gateway: StartGateway,
    start_upstream: StartUpstream,
    script: Script,
    status: int,
    body: dict[str, Any],
) -> None:
    origin = "https://chat.example"
    gateway = await start_gateway(cors={"allow_origins": [origin]})
    await gateway.register("box", await start_upstream(script))
    reply = await gateway.chat("coder", f"Origin: {origin}", **body)
    assert (reply.status, reply.fields["access-control-allow-origin"]) == (status, origin)
    other = await gateway.chat("nobody", "Origin: http://localhost")
    assert "access-control-allow-origin" not in other.fields


# --- paths, dialects, names -------------------------------------------------------------------

NAMED = answers(b'{"model":"m","ok":1.0}')
MESSAGES = "/v1/messages"
MODELS = [{"model_id": "m", "roles": ["coder"], "slots": 1, "slots_free": 1}]


async def test_an_operator_s_paths_come_and_go_by_reload(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway, up = await start_gateway(), await start_upstream(NAMED)
    await gateway.register("box", up)
    models = {"models": {"coder": DISCOVERED}}
    assert (await gateway.post("/infill", {"model": "coder"})).status == 404
    await gateway.reload({**models, "paths": {"/infill": {"slots": 2}}})
    assert (await gateway.post("/infill", {"model": "coder"})).status == 200
    assert up.conversations[-1].method_and_path == "POST /infill"
    await gateway.reload(models)
    reply = await gateway.post("/infill", {"model": "coder"})
    assert (reply.status, reply.json["error"]["code"]) == (404, "unknown_path")


async def test_what_takes_no_slot_never_waits_for_one(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway, held = await start_gateway(), asyncio.Event()

    async def waits(talk: Any) -> None:
        if "chat" in talk.method_and_path:
            await held.wait()
        await NAMED(talk)

    await gateway.register("box", await start_upstream(waits), *MODELS)
    async with asyncio.TaskGroup() as group:
        group.create_task(gateway.chat())
        await eventually(lambda: gateway.in_flight() == 1, what="the slot taken")
        group.create_task(gateway.chat())
        await eventually(lambda: gateway.queued("coder") == 1, what="another waits")
        for path in ("/tokenize", "/v1/messages/count_tokens"):
            assert (await gateway.post(path, {"model": "coder"})).status == 200
        assert gateway.queued("coder") == 1
        held.set()


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"{", 400, "invalid_request_error"),
        (b'{"model":"x"}', 404, "not_found_error"),
        (b'{"model":"coder"}', 503, "overloaded_error"),
    ],
)
async def test_who_speaks_anthropic_s_api_is_refused_in_its_shape(
    body: bytes, status: int, kind: str, start_gateway: StartGateway
) -> None:
    gateway = await start_gateway()
    for path in (MESSAGES, "/messages/count_tokens"):
        reply = await gateway.post(path, body)
        assert (reply.status, reply.json["type"]) == (status, "error")
        assert reply.json["error"]["type"] == kind
        assert reply.json["request_id"] == reply.fields["x-request-id"]


async def test_what_llama_server_says_of_a_message_passes_as_it_is(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway, error = await start_gateway(), b'{"error":{"code":400,"message":"no","type":"x"}}'
    await gateway.register("box", await start_upstream(answers(error, status=400)))
    reply = await gateway.post(MESSAGES, {"model": "coder"})
    assert (reply.status, reply.body) == (400, error)


async def test_a_stream_of_messages_that_breaks_ends_with_its_error_event(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway()
    script = sends_and_resets(CHUNKED_STREAM + chunk(b'data: {"type":"message_start"}\n\n'))
    await gateway.register("box", await start_upstream(script))
    async with connected(gateway.port) as client:
        await client.send(post(MESSAGES, b'{"model":"coder","stream":true}'))
        stream = await client.rest()
    _, event = stream.split(b"\n\nevent: error\ndata: ")
    tree = json.loads(event.strip())
    assert (tree["type"], tree["error"]["type"]) == ("error", "api_error")


ECHOES = {**DISCOVERED, "role": "coder", "echo_model": True}


@pytest.mark.parametrize(("alias", "named"), [("coder", "m"), ("echoes", "echoes")])
async def test_an_alias_answers_in_its_own_name_if_it_is_told_to(
    alias: str, named: str, start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway(models={"coder": DISCOVERED, "echoes": ECHOES})
    event = chunk(b'data: {"model":"m","x":1.0}\n\n')
    stream = sends(CHUNKED_STREAM + event, event + LAST_CHUNK)
    await gateway.register("box", await start_upstream(NAMED, NAMED, stream, stream))
    for _ in range(2):  # the second one over a connection that is there
        reply = await gateway.chat(alias)
        assert reply.body == b'{"model":"%b","ok":1.0}' % named.encode()
        assert reply.fields["x-rolemesh-model"] == "m"
    for _ in range(2):
        streamed = await gateway.chat(alias, stream=True)
        assert streamed.body == b'data: {"model":"%b","x":1.0}\n\n' % named.encode() * 2


async def test_a_fallback_answers_in_the_name_that_was_asked_for(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    nobody = {**DISCOVERED, "echo_model": True, "fallback": ["coder"]}
    gateway: Running = await start_gateway(models={"coder": DISCOVERED, "nobody": nobody})
    await gateway.register("box", await start_upstream(NAMED))
    assert (await gateway.chat("nobody")).json["model"] == "nobody"


async def test_a_stream_that_a_node_ends_with_an_error_has_no_second_one(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    said = b'\n\ndata: {"error": {"message": "cpu0 is gone", "request_id": "req-1"}}\n\n'
    gateway = await start_gateway()
    await gateway.register("box", await start_upstream(sends_and_closes(STREAM, chunk(said))))
    async with asking(gateway, stream=True) as client:
        heard = await client.rest()
    assert heard.count(b'"error"') == 1
    assert not heard.endswith(LAST_CHUNK)


@pytest.mark.parametrize("body", [b'{"model":"coder"}', b'{"model":"coder","stream":true}', b"{"])
async def test_clients_of_anthropics_api_find_the_request_id_where_they_look(
    start_gateway: StartGateway, start_upstream: StartUpstream, body: bytes
) -> None:
    gateway = await start_gateway()
    await gateway.register("box", await start_upstream(sends(STREAM + LAST_CHUNK)))
    reply = await gateway.post(MESSAGES, body, "X-Request-Id: id-1")
    assert reply.fields["request-id"] == reply.fields["x-request-id"] == "id-1"
    assert "request-id" not in (await gateway.post(CHAT, body)).fields
