"""Requests that are not inference requests, and what aiohttp would answer in its own words."""

import asyncio
import json
import re
from typing import Any

import pytest
from aiohttp import web

from rolemesh import errors
from rolemesh.relay.application import LineStream, lines_route, peer_of, route
from rolemesh.relay.replies import Reply, json_reply
from tests.fakes.client import Received, connected, post, request
from tests.fakes.serving import echo, serving


async def show(request: web.Request) -> Reply:
    body = (await request.read()).decode()
    return json_reply({"peer": peer_of(request), "body": body}, status=201)


async def fail(request: web.Request) -> Reply:
    raise errors.NotAllowed("not you") if "polite" in request.query else ZeroDivisionError


async def count(request: web.Request, lines: LineStream) -> Reply | None:
    """Answer with so many lines, and then as `then` says."""
    for number in range(int(request.query["lines"])):
        await lines.send_object({"line": number})
    if request.query["then"] == "error":
        raise errors.NotAllowed("no further")
    return json_reply({"whole": True}) if request.query["then"] == "reply" else None


ROUTES = [
    lines_route("GET", "/count", count),
    route("GET", "/show", show),
    route("POST", "/show", show),
    route("GET", "/fail", fail),
    route("GET", "/part/{name}", show),
]


async def exchange(data: bytes) -> Received:
    """Send one request; the connection must close after its reply."""
    async with serving(echo, routes=ROUTES) as served, connected(served.port) as client:
        await client.send(data)
        reply = await client.reply()
        assert await client.rest() == b""
        assert reply.fields["connection"] == "close"
        return reply


async def test_other_requests_are_answered_by_routes() -> None:
    reply = await exchange(request("GET", "/show?x=1"))
    assert (reply.status, reply.json) == (201, {"peer": "127.0.0.1", "body": ""})
    assert reply.fields["content-type"] == "application/json; charset=utf-8"
    assert (await exchange(post("/show", b"some text"))).json["body"] == "some text"
    chunked = request("POST", "/show", "Transfer-Encoding: chunked") + b"1\r\na\r\n0\r\n\r\n"
    assert (await exchange(chunked)).json["body"] == "a"


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "allow"),
    [
        ("GET", "/nowhere", 404, "unknown_path", ""),
        ("POST", "/v1/nowhere", 404, "unknown_path", ""),
        ("OPTIONS", "/nowhere", 404, "unknown_path", ""),
        ("GET", "/v1/completions", 405, "method_not_allowed", "OPTIONS, POST"),
        ("PUT", "/chat/completions", 405, "method_not_allowed", "OPTIONS, POST"),
        ("DELETE", "/part/x", 405, "method_not_allowed", "GET, HEAD, OPTIONS"),
        ("PATCH", "/show", 405, "method_not_allowed", "GET, HEAD, OPTIONS, POST"),
        ("GET", "/fail?polite", 403, "not_allowed", ""),
        ("GET", "/fail", 500, "internal_error", ""),
    ],
)
async def test_every_error_is_a_json_object(
    method: str, path: str, status: int, code: str, allow: str
) -> None:
    reply = await exchange(request(method, path, "X-Request-Id: one"))
    assert (reply.status, reply.error["code"]) == (status, code)
    assert reply.fields.get("allow", "") == allow
    assert reply.error["request_id"] == reply.fields["x-request-id"] == "one"


async def test_an_error_has_the_shape_of_the_api_whose_path_it_is() -> None:
    reply = await exchange(request("GET", "/v1/messages", "X-Request-Id: one"))
    assert (reply.json["type"], reply.json["request_id"]) == ("error", "one")
    assert (reply.error["type"], reply.error["status"]) == ("invalid_request_error", 405)


async def test_a_body_that_is_too_large_is_refused() -> None:
    reply = await exchange(post("/show", b"a" * 1001))
    assert (reply.status, reply.error["code"]) == (413, "body_too_large")


async def test_a_reply_has_a_request_id_whatever_the_client_sent() -> None:
    reply = await exchange(request("GET", "/show", "X-Request-Id: a b"))
    assert re.fullmatch("req-[0-9a-f]{24}", reply.fields["x-request-id"])


@pytest.mark.parametrize("field", [f"Cookie: {'a' * 20_000}", "X: \xe9\xff"])
async def test_what_the_relay_takes_as_a_header_aiohttp_takes_too(field: Any) -> None:
    assert (await exchange(request("GET", "/show", field))).status == 201


# --- OPTIONS, HEAD and pages from elsewhere ---------------------------------------------------

PAGE = "https://chat.example"


async def asked(data: bytes, *allowed_origins: str) -> tuple[int, dict[str, str], bytes]:
    """Send one request; returns status, headers and all that came behind the head."""
    async with (
        serving(echo, routes=ROUTES, allowed_origins=allowed_origins) as served,
        connected(served.port) as client,
    ):
        await client.send(data)
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
        received = Received(head=head, raw_body=body, body=body)
        return received.status, received.fields, body


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/v1/completions", "OPTIONS, POST"),
        ("/health", "GET, HEAD, OPTIONS"),
        ("/show", "GET, HEAD, OPTIONS, POST"),
        ("/part/x", "GET, HEAD, OPTIONS"),
    ],
)
async def test_every_path_can_be_asked_what_it_takes(path: str, allow: str) -> None:
    status, fields, body = await asked(request("OPTIONS", path))
    assert (status, fields["allow"], body) == (204, allow, b"")
    assert "x-request-id" in fields
    assert not [name for name in fields if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), ("/v1/completions", 405), ("/nowhere", 404)]
)
async def test_head_is_answered_like_get_without_the_body(path: str, status: int) -> None:
    of_get = await asked(request("GET", path, "X-Request-Id: one"))
    of_head = await asked(request("HEAD", path, "X-Request-Id: one"))
    assert (of_head[0], of_head[2]) == (status, b"")
    assert of_head[1].keys() == of_get[1].keys()
    assert of_head[1]["content-length"] != "0"


@pytest.mark.parametrize("line", ["GET /health HTTP/1.0", "HEAD /show HTTP/1.0"])
async def test_http_1_0_gets_its_reply_and_a_close(line: str) -> None:
    status, fields, _ = await asked(f"{line}\r\nConnection: keep-alive\r\n\r\n".encode())
    assert status in {200, 201}
    assert fields["connection"] == "close"


async def test_a_page_that_may_read_is_told_so_in_every_reply() -> None:
    for path in ("/show", "/nowhere", "/fail", "/fail?polite", "/v1/completions"):
        _, fields, _ = await asked(request("GET", path, f"Origin: {PAGE}"), PAGE)
        assert fields["access-control-allow-origin"] == PAGE
        assert fields["vary"] == "Origin"
    for refused in ("Content-Length: 5000", "Content-Encoding: br"):
        _, fields, _ = await asked(request("POST", "/show", f"Origin: {PAGE}", refused), PAGE)
        assert fields["access-control-allow-origin"] == PAGE


async def test_a_page_from_elsewhere_may_ask_first() -> None:
    preflight = request(
        "OPTIONS",
        "/v1/completions",
        f"Origin: {PAGE}",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: authorization,content-type",
    )
    status, fields, body = await asked(preflight, PAGE)
    assert (status, body) == (204, b"")
    assert fields["access-control-allow-origin"] == PAGE
    assert fields["access-control-allow-methods"] == "OPTIONS, POST"
    assert fields["access-control-allow-headers"] == "authorization,content-type"
    for allowed in ((), ("https://other.example",)):
        status, fields, _ = await asked(preflight, *allowed)
        assert status == 204
        assert not [name for name in fields if name.startswith("access-control-")]


async def test_a_reply_may_be_lines_that_come_one_by_one() -> None:
    reply = await exchange(request("GET", "/count?lines=2&then=end"))
    assert (reply.status, reply.fields["content-type"]) == (200, "application/x-ndjson")
    assert [json.loads(line) for line in reply.body.splitlines()] == [{"line": 0}, {"line": 1}]
    assert (await exchange(request("GET", "/count?lines=0&then=reply"))).json == {"whole": True}


async def test_an_error_after_the_first_line_is_the_last_one() -> None:
    refused = await exchange(request("GET", "/count?lines=0&then=error"))
    assert (refused.status, refused.error["code"]) == (403, "not_allowed")
    reply = await exchange(request("GET", "/count?lines=1&then=error"))
    assert reply.status == 200
    last = json.loads(reply.body.splitlines()[-1])
    assert (last["error"]["status"], last["error"]["message"]) == (403, "no further")


async def test_lines_end_when_nobody_reads_them_any_more() -> None:
    ended = asyncio.Event()

    async def for_ever(_request: web.Request, lines: LineStream) -> None:
        try:
            while True:
                await lines.send_object({})
                await asyncio.sleep(0)
        finally:
            ended.set()

    routes = [lines_route("GET", "/for-ever", for_ever)]
    async with serving(echo, routes=routes) as served:
        async with connected(served.port) as client:
            await client.send(request("GET", "/for-ever"))
            await client._line()
        await ended.wait()
