"""Requests that are not inference requests, and what aiohttp would answer in its own words."""

import re
from typing import Any

import pytest
from aiohttp import web

from rolemesh import errors
from rolemesh.relay.application import peer_of, route
from rolemesh.relay.replies import Reply, json_reply
from tests.fakes.client import Received, connected, post, request
from tests.fakes.serving import echo, serving


async def show(request: web.Request) -> Reply:
    body = (await request.read()).decode()
    return json_reply({"peer": peer_of(request), "body": body}, status=201)


async def fail(request: web.Request) -> Reply:
    raise errors.NotAllowed("not you") if "polite" in request.query else ZeroDivisionError


ROUTES = [
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
        ("POST", "/v1/completions/", 404, "unknown_path", ""),
        ("GET", "/v1/completions", 405, "method_not_allowed", "POST"),
        ("PUT", "/chat/completions", 405, "method_not_allowed", "POST"),
        ("OPTIONS", "/v1/embeddings", 405, "method_not_allowed", "POST"),
        ("DELETE", "/part/x", 405, "method_not_allowed", "GET"),
        ("GET", "/fail?polite", 403, "not_allowed", ""),
        ("GET", "/fail", 500, "internal_error", ""),
    ],
)
async def test_every_error_is_a_json_object(
    method: str, path: str, status: int, code: str, allow: str
) -> None:
    reply = await exchange(request(method, path, "X-Request-Id: one"))
    assert (reply.status, reply.error["code"]) == (status, code)
    # aiohttp's newer versions answer HEAD where there is GET.
    assert reply.fields.get("allow", "").replace("GET, HEAD", "GET") == allow
    assert reply.error["request_id"] == reply.fields["x-request-id"] == "one"


async def test_a_body_that_is_too_large_is_refused() -> None:
    reply = await exchange(post("/show", b"a" * 1001))
    assert (reply.status, reply.error["code"]) == (413, "body_too_large")


async def test_a_reply_has_a_request_id_whatever_the_client_sent() -> None:
    reply = await exchange(request("GET", "/show", "X-Request-Id: a b"))
    assert re.fullmatch("req-[0-9a-f]{24}", reply.fields["x-request-id"])


@pytest.mark.parametrize("field", [f"Cookie: {'a' * 20_000}", "X: \xe9\xff"])
async def test_what_the_relay_takes_as_a_header_aiohttp_takes_too(field: Any) -> None:
    assert (await exchange(request("GET", "/show", field))).status == 201
