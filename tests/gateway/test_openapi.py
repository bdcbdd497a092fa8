"""The OpenAPI document against the gateway's routes and against what it really answers."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import rolemesh
from rolemesh.gateway.openapi import document
from rolemesh.relay.paths import INFERENCE_PATHS
from tests.fakes import openapi
from tests.fakes.client import Received, connected, post, request
from tests.fakes.upstream import answers, sends_and_closes, sends_and_hangs
from tests.gateway.conftest import StartGateway, StartUpstream
from tests.gateway.harness import CHAT, DISCOVERED, Running
from tests.lab.poll import eventually
from tests.lab.processes import free_port

ADMIN = "X-Api-Key: admin-key"
CLIENT = "Authorization: Bearer client-key"
NODE = "X-Api-Key: node-key"
AUTH = {
    "clients": {
        "ops": {"key": "admin-key", "admin": True},
        "ci": {"key": "client-key", "roles": ["coder", "lost"]},
    },
    "nodes": {"box": {"key": "node-key"}},
}
ALIASES = {"coder": DISCOVERED, "lost": DISCOVERED, "other": DISCOVERED}
ANSWER = {"object": "anything"}
MAX_BODY = 4096


@pytest.fixture
async def gateway(start_gateway: StartGateway, start_upstream: StartUpstream) -> Running:
    """A gateway with keys and one node that answers for the role coder."""
    running = await start_gateway(
        auth=AUTH, models=ALIASES, default_model="coder", limits={"max_body_bytes": MAX_BODY}
    )
    upstream = await start_upstream(answers(json.dumps(ANSWER).encode()))
    report = {
        "node_id": "box",
        "base_url": upstream.url,
        "boot_id": "one",
        "version": "0.1.0",
        "models": [
            {
                "model_id": "m",
                "roles": ["coder"],
                "state": "ready",
                "slots": 2,
                "slots_free": 2,
                "instances": [{"name": "gpu0", "slots": 2, "slots_free": 2}],
            }
        ],
        "instances": [{"name": "gpu0"}],
    }
    await checked(running, "POST", "/v1/nodes/register", 200, NODE, body=report)
    return running


async def ask(gateway: Running, method: str, path: str, *fields: str, body: Any) -> Received:
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    async with connected(gateway.port) as client:
        length = () if body is None else (f"Content-Length: {len(data)}",)
        await client.send(request(method, path, *fields, *length) + data)
        return await client.reply()


async def checked(
    gateway: Running, method: str, path: str, status: int, *fields: str, body: Any = None
) -> Received:
    """Ask, and hold the reply against the document."""
    reply = await ask(gateway, method, path, *fields, body=body)
    assert reply.status == status, (method, path, reply.body)
    operation = openapi.operation_of(method, path)
    openapi.check(operation, reply.status, reply.fields, reply.body)
    return reply


# --- the document itself ----------------------------------------------------------------------


def nodes_of(tree: Any) -> Any:
    yield tree
    for child in tree.values() if isinstance(tree, Mapping) else tree:
        if isinstance(child, Mapping | list):
            yield from nodes_of(child)


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    references = {
        node["$ref"]
        for node in nodes_of(document())
        if isinstance(node, Mapping) and "$ref" in node
    }
    for reference in references:
        assert openapi.resolved({"$ref": reference})
    for kind in ("pathItems", "parameters", "headers", "responses", "schemas"):
        defined = {f"#/components/{kind}/{name}" for name in document()["components"][kind]}
        assert defined - references <= {"#/components/responses/MethodNotAllowed"}


def test_every_schema_is_one() -> None:
    for schema in document()["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_the_source_of_the_document_is_written_the_way_it_is_read() -> None:
    source = Path(rolemesh.__file__).parent / "gateway" / "openapi.json"
    lines = source.read_text().splitlines()
    assert max(map(len, lines)) < 300
    assert document()["info"]["version"] == rolemesh.__version__


# --- the paths --------------------------------------------------------------------------------


async def test_every_inference_path_is_in_it_with_the_errors_of_its_api() -> None:
    said = {path: operation for method, path, operation in openapi.operations() if method == "POST"}
    assert said.keys() >= INFERENCE_PATHS.keys()
    for path, kind in INFERENCE_PATHS.items():
        schema = openapi.resolved(said[path]["responses"]["401"])["content"]["application/json"]
        shape = schema["schema"]["$ref"].rpartition("/")[2]
        assert shape == {"openai": "Error", "anthropic": "AnthropicError"}[kind.dialect.value]


async def test_every_path_in_it_exists_with_the_methods_it_is_said_to_have(
    gateway: Running,
) -> None:
    for path, item in document()["paths"].items():
        said = {name.upper() for name in openapi.resolved(item)}
        real = re.sub(r"\{\w+\}", "x", path)
        reply = await ask(gateway, "OPTIONS", real, body=None)
        assert reply.status == 204, path
        assert said <= set(reply.fields["allow"].split(", ")), path


async def test_every_path_that_exists_is_in_it(gateway: Running) -> None:
    application = gateway.gateway._inbound.other.application  # type: ignore[attr-defined]
    routes = application.request_handler.__self__.router.routes()
    real = {
        (route.method, re.sub(r":[^}]*", "", route.resource.canonical))
        for route in routes
        if route.method not in {"*", "HEAD"}
    }
    said = {(method, path) for method, path, _ in openapi.operations()}
    assert real | {("POST", path) for path in INFERENCE_PATHS} == said


# --- replies ----------------------------------------------------------------------------------

OPERATOR = "/v1/rolemesh"


async def test_the_document_is_served_to_anybody(gateway: Running) -> None:
    reply = await checked(gateway, "GET", "/openapi.json", 200)
    assert reply.json == document()


REPLIES: list[tuple[str, str, int, tuple[str, ...]]] = [
    ("GET", "/health", 200, ()),
    ("GET", "/ready", 200, ()),
    ("GET", "/v1/models", 200, (CLIENT,)),
    ("GET", "/models", 200, (CLIENT,)),
    ("GET", "/v1/models", 401, ()),
    ("GET", "/v1/models/coder", 200, (CLIENT,)),
    ("GET", "/v1/models/coder", 401, ("Authorization: Bearer wrong",)),
    ("GET", "/v1/models/other", 403, (CLIENT,)),
    ("GET", "/v1/models/lost", 503, (CLIENT,)),
    ("GET", "/v1/models/un/known", 404, (ADMIN,)),
    ("GET", "/metrics", 200, (CLIENT,)),
    ("GET", "/metrics", 401, ()),
    ("GET", f"{OPERATOR}/status", 200, (ADMIN,)),
    ("GET", f"{OPERATOR}/status", 403, (CLIENT,)),
    ("GET", f"{OPERATOR}/aliases", 200, (ADMIN,)),
    ("GET", f"{OPERATOR}/aliases", 401, ()),
    ("GET", f"{OPERATOR}/explain/coder", 200, (ADMIN,)),
    ("GET", f"{OPERATOR}/explain/lost?key=ci", 200, (ADMIN,)),
    ("GET", f"{OPERATOR}/explain/coder?key=nobody", 400, (ADMIN,)),
    ("GET", f"{OPERATOR}/explain/nothing", 404, (ADMIN,)),
    ("GET", f"{OPERATOR}/requests", 200, (ADMIN,)),
    ("GET", f"{OPERATOR}/requests?by=colour", 400, (ADMIN,)),
    ("DELETE", f"{OPERATOR}/requests/none", 404, (ADMIN,)),
    ("GET", f"{OPERATOR}/trace/none", 200, (ADMIN,)),
    ("POST", f"{OPERATOR}/nodes/box/drain", 200, (ADMIN,)),
    ("POST", f"{OPERATOR}/nodes/none/drain", 404, (ADMIN,)),
    ("POST", f"{OPERATOR}/nodes/box/undrain", 200, (ADMIN,)),
    ("POST", f"{OPERATOR}/nodes/none/undrain", 404, (ADMIN,)),
    ("GET", f"{OPERATOR}/nodes/box/node", 200, (ADMIN,)),
    ("GET", f"{OPERATOR}/nodes/none/node", 404, (ADMIN,)),
    ("GET", f"{OPERATOR}/nodes/box/node/plan?model=m", 200, (ADMIN,)),
    ("GET", f"{OPERATOR}/nodes/none/node/plan", 404, (ADMIN,)),
    ("POST", f"{OPERATOR}/nodes/box/node/models/org/m/load", 200, (ADMIN,)),
    ("POST", f"{OPERATOR}/nodes/none/node/models/m/load", 404, (ADMIN,)),
    ("POST", f"{OPERATOR}/reload", 200, (ADMIN,)),
    ("POST", f"{OPERATOR}/reload", 403, (CLIENT,)),
    ("GET", f"{OPERATOR}/keys", 200, (ADMIN,)),
    ("GET", "/v1/nodes/box", 200, (NODE,)),
    ("GET", "/v1/nodes/none", 404, (NODE,)),
    ("DELETE", "/v1/nodes/box", 200, (NODE,)),
    ("DELETE", "/v1/nodes/none", 404, (NODE,)),
    ("DELETE", "/v1/nodes/box", 401, (CLIENT,)),
]


async def test_a_reply_without_a_body_to_ask_is_as_it_says(gateway: Running) -> None:
    for method, path, status, fields in REPLIES:
        await checked(gateway, method, path, status, *fields)


async def test_every_path_but_the_open_ones_asks_for_a_key_as_it_says(gateway: Running) -> None:
    for method, path, operation in openapi.operations():
        is_open = operation.get("security") == []
        assert is_open == (path in {"/health", "/ready", "/openapi.json"})
        if not is_open:
            real = re.sub(r"\{\w+\}", "x", path)
            await checked(gateway, method, real, 401, body={} if method == "POST" else None)


async def test_every_path_of_operators_is_closed_to_others_as_it_says(gateway: Running) -> None:
    for method, path, operation in openapi.operations():
        if "operators" in operation["tags"]:
            await checked(gateway, method, re.sub(r"\{\w+\}", "x", path), 403, CLIENT)


def test_what_any_request_may_be_refused_for_is_said_of_every_path() -> None:
    for _, path, operation in openapi.operations():
        assert {"400", "408", "413", "431"} <= operation["responses"].keys(), path


REGISTER = "/v1/nodes/register"
BEAT = "/v1/nodes/box/heartbeat"


NODE_REPLIES: list[tuple[str, int, Any, tuple[str, ...]]] = [
    (REGISTER, 400, {}, (NODE,)),
    (REGISTER, 400, b"[", (NODE,)),
    (REGISTER, 401, {}, ()),
    (REGISTER, 413, b"{" * 5_000_000, (NODE,)),
    (BEAT, 200, {"boot_id": "one", "models": []}, (NODE,)),
    (BEAT, 404, {"boot_id": "two", "models": []}, (NODE,)),
    (BEAT, 400, {"boot_id": "one", "models": 1}, (NODE,)),
]


async def test_a_reply_to_a_node_is_as_it_says(gateway: Running) -> None:
    for path, status, body, fields in NODE_REPLIES:
        await checked(gateway, "POST", path, status, *fields, body=body)


@pytest.mark.parametrize(
    ("status", "body", "fields"),
    [
        (200, {"model": "coder"}, (CLIENT,)),
        (400, b"{", (CLIENT,)),
        (401, {"model": "coder"}, ()),
        (403, {"model": "other"}, (CLIENT,)),
        (404, {"model": "unknown"}, (ADMIN,)),
        (413, b"a" * (MAX_BODY + 1), (CLIENT,)),
        (503, {"model": "lost"}, (CLIENT,)),
    ],
)
async def test_a_reply_to_every_kind_of_inference_is_as_it_says(
    gateway: Running, status: int, body: Any, fields: tuple[str, ...]
) -> None:
    for path in INFERENCE_PATHS:
        reply = await checked(gateway, "POST", path, status, *fields, body=body)
        if status == 200:
            assert reply.json == ANSWER
            assert reply.fields["x-rolemesh-node"] == "box"


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
async def test_a_reply_that_an_upstream_is_to_blame_for_is_as_it_says(
    start_gateway: StartGateway, start_upstream: StartUpstream, path: str
) -> None:
    breaks = await start_upstream(sends_and_closes(b"HTTP/1.1 200 OK\r\n"))
    hangs = await start_upstream(sends_and_hangs())
    gateway = await start_gateway(
        auth={"clients": {"ci": {"key": "client-key", "requests_per_minute": 3}}},
        models={
            "away": {"type": "proxy", "proxy_url": f"http://127.0.0.1:{free_port()}"},
            "broken": {"type": "proxy", "proxy_url": breaks.url},
            "slow": {"type": "proxy", "proxy_url": hangs.url, "timeouts": {"first_byte_s": 0.05}},
        },
    )
    for alias, status in (("away", 503), ("broken", 502), ("slow", 504), ("slow", 429)):
        reply = await checked(gateway, "POST", path, status, CLIENT, body={"model": alias})
        assert reply.error["status"] == status


async def test_a_request_under_way_is_shown_and_cancelled_as_it_says(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    hangs = await start_upstream(sends_and_hangs())
    entry = {"type": "proxy", "proxy_url": hangs.url}
    gateway = await start_gateway(auth=AUTH, models={"coder": entry})
    async with connected(gateway.port) as client:
        await client.send(post(CHAT, b'{"model": "coder"}', CLIENT, "X-Request-Id: mine"))
        await eventually(lambda: hangs.conversations, what="the upstream has it")
        listed = await checked(gateway, "GET", f"{OPERATOR}/requests?by=key", 200, ADMIN)
        assert [each["request_id"] for each in listed.json["requests"]] == ["mine"]
        await checked(gateway, "GET", f"{OPERATOR}/keys", 200, ADMIN)
        await checked(gateway, "DELETE", f"{OPERATOR}/requests/mine", 200, ADMIN)
        reply = await client.reply()
        assert (reply.status, reply.error["code"]) == (503, "cancelled")
        openapi.check(openapi.operation_of("POST", CHAT), 503, reply.fields, reply.body)
    traced = await checked(gateway, "GET", f"{OPERATOR}/trace/mine", 200, ADMIN)
    assert len(traced.json["records"]) == 1


async def test_a_refused_reload_is_told_as_it_says(gateway: Running) -> None:
    gateway.config.write_text("listen: 5\nmodels: []")
    reply = await checked(gateway, "POST", f"{OPERATOR}/reload", 422, ADMIN)
    assert len(reply.error["problems"]) == 2


async def test_a_gateway_that_is_not_ready_says_so_as_it_says(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    await checked(gateway, "GET", "/ready", 503)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (request("GET", "/nowhere"), "NotFound"),
        (request("GET", CHAT), "MethodNotAllowed"),
        (request("BREW", CHAT), "MethodNotAllowed"),
        (b"\x00", "BadRequest"),
        (request("GET", "/health", "Content-Length: a"), "BadRequest"),
        (request("GET", "/health", f"X: {'a' * 70_000}"), "HeadTooLarge"),
        (request("POST", CHAT, "Content-Length: 999999"), "BodyTooLarge"),
        (b"GET /health", "TooSlow"),
    ],
)
async def test_an_error_of_any_path_is_as_it_says(
    start_gateway: StartGateway, data: bytes, name: str
) -> None:
    gateway = await start_gateway(limits={"max_body_bytes": MAX_BODY, "header_timeout_s": 0.1})
    async with connected(gateway.port) as client:
        await client.send(data)
        reply = await client.reply()
    said = document()["components"]["responses"][name]
    openapi.check_reply(said, reply.fields, reply.body)
