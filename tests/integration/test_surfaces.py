"""Every path of the API, asked through gateway and agent: what comes is what llama-server says."""

import base64
import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rolemesh.relay.paths import INFERENCE_PATHS
from tests.integration.conftest import StartDaemon, model
from tests.lab.mesh import Daemon, instance_is_ready, post_json, usable_models
from tests.lab.poll import eventually

HI = [{"role": "user", "content": "hi"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": CITY}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"city": "New Rome"}}\n</tool_call>'
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()

# What each kind of path is asked: the instance that answers, and the body.
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "/v1/chat/completions": ("cpu0", {"messages": HI}),
    "/v1/completions": ("cpu0", {"prompt": ["hi", "there"], "max_tokens": 20}),
    "/v1/responses": ("cpu0", {"input": "hi"}),
    "/v1/responses/input_tokens": ("cpu0", {"input": "hi there"}),
    "/v1/messages": ("cpu0", {"messages": HI, "max_tokens": 100}),
    "/v1/messages/count_tokens": ("cpu0", {"messages": HI}),
    "/tokenize": ("cpu0", {"content": "hi there", "with_pieces": True}),
    "/detokenize": ("cpu0", {"tokens": [300, 301]}),
    "/apply-template": ("cpu0", {"messages": HI}),
    "/v1/embeddings": ("cpu1", {"input": ["hi", "there", "you"], "encoding_format": "base64"}),
    "/v1/rerank": ("cpu2", {"query": "hi", "documents": ["one", "two", "three"], "top_n": 2}),
}
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"n": 3}),
    ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 2, "max_tokens": 5}),
    ("/v1/chat/completions", {"tools": [TOOL]}),
    ("/v1/chat/completions", {"tools": [TOOL], "tool_choice": "required", "max_tokens": 40}),
    (
        "/v1/chat/completions",
        {"response_format": {"type": "json_schema", "json_schema": {"schema": CITY}}},
    ),
    ("/v1/chat/completions", {"messages": "refused"}),
    ("/v1/completions", {"logprobs": 2, "echo": False}),
    ("/v1/responses", {"n": 2}),
    ("/v1/responses", {"tools": [{"type": "function", "name": "look", "parameters": CITY}]}),
    ("/v1/messages", {"tools": [{"name": "look", "description": "", "input_schema": CITY}]}),
    ("/v1/messages", {"stop_sequences": ["look"], "system": "Be brief ."}),
    ("/v1/messages", {"max_tokens": "refused"}),
    ("/v1/embeddings", {"input": [1, 2, 3]}),
    ("/v1/embeddings", {"input": []}),
    ("/v1/rerank", {"documents": []}),
]
STREAMED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", {"n": 2}),
    ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", {"tools": [TOOL]}),
    ("/v1/completions", {"prompt": "hi"}),
    ("/v1/responses", {"tools": [{"type": "function", "name": "look", "parameters": CITY}]}),
    ("/v1/messages", {"tools": [{"name": "look", "description": "", "input_schema": CITY}]}),
]
PICTURES: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
    ),
    (
        "/v1/messages",
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
    ),
]


@dataclass(frozen=True, slots=True)
class Mesh:
    """A gateway, and an agent with a model that talks, one that embeds and one that ranks."""

    gateway: Daemon
    agent: Daemon

    async def ask(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """Ask through the gateway, and so through the agent."""
        return await post_json(self.gateway.url + path, body)

    async def stream(self, path: str, body: Mapping[str, Any]) -> bytes:
        """Ask through the gateway for a stream; returns all of it."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.gateway.url + path, json=body) as reply,
        ):
            return await reply.read()

    async def ask_directly(
        self, instance: str, path: str, body: Mapping[str, Any]
    ) -> tuple[int, Any]:
        """Ask llama-server itself."""
        status, content = await self.post_directly(instance, path, body)
        return status, json.loads(content)

    async def post_directly(
        self, instance: str, path: str, body: Mapping[str, Any]
    ) -> tuple[int, bytes]:
        """Ask llama-server itself; returns status and content of its reply."""
        (socket,) = (each for each in self.agent.state.rglob("http.sock") if instance in str(each))
        connector = aiohttp.UnixConnector(path=str(socket))
        async with (
            aiohttp.ClientSession("http://localhost", connector=connector) as session,
            session.post(path, json={**body, "model": f"{instance}-gguf"}) as reply,
        ):
            return reply.status, await reply.read()


@pytest.fixture
async def mesh(
    start_gateway: StartDaemon, start_agent: StartDaemon, make_model: Callable[..., Path]
) -> Mesh:
    """Start a mesh whose agent has an instance for each kind of model."""
    gateway = await start_gateway(
        {
            "aliases": {"from_roles": True},
            "paths": {"/completion": {"slots": 1}},
            "models": {"echoes": {"type": "discovered", "role": "cpu0", "echo_model": True}},
        }
    )
    talks = make_model("talks", says=f"I will look .{CALL}")
    plain = make_model("plain")
    models = [
        model(talks, "cpu0-gguf", "cpu0", parallel=4),
        {
            **model(plain, "cpu1-gguf", "cpu1", parallel=4),
            "args": ["--embeddings", "--pooling", "mean"],
        },
        {**model(plain, "cpu2-gguf", "cpu2", parallel=2), "args": ["--rerank"]},
    ]
    instances = {f"cpu{number}": {"model": f"cpu{number}-gguf"} for number in range(3)}
    agent = await start_agent(
        "box",
        {"models": models, "instances": instances, "paths": {"/completion": {"slots": 1}}},
        gateway,
    )
    for name in instances:
        await eventually(partial(instance_is_ready, agent, name), what=f"{name} ready")
    await eventually(lambda: all_usable(gateway), what="all usable")
    return Mesh(gateway, agent)


async def all_usable(gateway: Daemon) -> bool:
    return await usable_models(gateway) == {"cpu0", "cpu1", "cpu2", "echoes"}


def body_for(path: str, extra: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """Return the instance that is asked, and a body that always has the same answer."""
    instance, body = ASKED[path]
    same = {"temperature": 0, "seed": 7, "cache_prompt": False}
    return instance, {"model": instance, **same, **body, **(extra or {})}


def comparable(node: Any, key: str = "") -> Any:
    """Return a reply without what differs from one to the next: ids, times, and how long it took."""
    if key in ("id", "call_id", "item_id", "created", "created_at", "completed_at"):
        return type(node).__name__
    if key == "timings":
        return sorted(node)
    if isinstance(node, dict):
        return {name: comparable(value, name) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [comparable(item) for item in node]
    return node


@pytest.mark.timeout(120)
async def test_every_path_and_shape_is_answered_as_by_llama_server(mesh: Mesh) -> None:
    assert {kind.upstream_path for kind in INFERENCE_PATHS.values()} == ASKED.keys()
    asked = [
        *((path, kind.upstream_path, {}) for path, kind in INFERENCE_PATHS.items()),
        *((path, path, extra) for path, extra in SHAPES),
    ]
    found = []
    for path, upstream_path, extra in asked:
        instance, body = body_for(upstream_path, extra)
        # Messages cannot be told to leave what is cached: both are to find the same.
        await mesh.ask_directly(instance, upstream_path, body)
        itself = await mesh.ask_directly(instance, upstream_path, body)
        through = await mesh.ask(path, body)
        if comparable(through) != comparable(itself):
            found.append((path, extra, through, itself))
    assert found == []


async def test_many_texts_are_answered_as_all_at_once(mesh: Mesh) -> None:
    """The agent asks for them in parts, which are not computed together: figures differ a little."""
    texts = [f"one two {number}" for number in range(40)]
    for path, extra in (
        ("/v1/embeddings", {"input": texts, "encoding_format": "float"}),
        ("/v1/embeddings", {"input": [[300, 301 + number] for number in range(40)]}),
        ("/v1/rerank", {"documents": texts, "top_n": 40}),
        ("/v1/rerank", {"documents": texts, "top_n": 10}),
        ("/v1/rerank", {"documents": None, "texts": texts, "top_n": 40}),
    ):
        instance, body = body_for(path, extra)
        body = {key: value for key, value in body.items() if value is not None}
        itself = await mesh.ask_directly(instance, path, body)
        assert alike(await mesh.ask(path, body), itself), (path, extra)


def alike(one: Any, other: Any) -> bool:
    """Tell whether replies are alike, figures within the noise of a sum in another order."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < 0.01
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


@pytest.mark.timeout(120)
async def test_every_stream_has_the_events_of_llama_server(mesh: Mesh) -> None:
    for path, extra in STREAMED:
        instance, body = body_for(path, {"stream": True, **extra})
        await mesh.post_directly(instance, path, body)
        _, itself = await mesh.post_directly(instance, path, body)
        through = await mesh.stream(path, body)
        assert events(through) == events(itself)


def events(stream: bytes) -> list[Any]:
    """Return the events of a stream, each with its name."""
    found: list[Any] = []
    for block in stream.decode().split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        for line in lines:
            field, _, value = line.partition(": ")
            if field == "data" and value != "[DONE]":
                found.append(comparable(json.loads(value)))
            elif line:
                found.append(line)
    return found


async def test_a_picture_is_refused_as_by_a_model_that_reads_only_text(mesh: Mesh) -> None:
    for path, picture in PICTURES:
        content = [{"type": "text", "text": "what is it"}, picture]
        instance, body = body_for(path, {"messages": [{"role": "user", "content": content}]})
        itself = await mesh.ask_directly(instance, path, body)
        assert itself[0] == 500
        assert await mesh.ask(path, body) == itself


async def test_an_operator_s_own_path_is_relayed_until_it_is_taken_away(mesh: Mesh) -> None:
    body = {"model": "cpu0", "prompt": "hi", "n_predict": 3}
    status, reply = await mesh.ask("/completion", body)
    assert (status, reply["content"]) == (200, "I will look")
    mesh.gateway.drop_in("60-paths.yaml", {"paths": {"/completion": None}})
    mesh.gateway.program.send(signal.SIGHUP)
    await eventually(lambda: is_unknown(mesh, "/completion"), what="the path gone")


async def is_unknown(mesh: Mesh, path: str) -> bool:
    status, reply = await mesh.ask(path, {"model": "cpu0"})
    return status == 404 and reply["error"]["code"] == "unknown_path"


async def test_an_alias_may_answer_in_its_own_name(mesh: Mesh) -> None:
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses"):
        _, body = body_for(path, {"model": "echoes"})
        _, reply = await mesh.ask(path, body)
        assert reply["model"] == "echoes"
        asked = {**body, "stream": True}
        stream = await mesh.stream(path, asked)
        _, itself = await mesh.post_directly("cpu0", path, asked)
        assert b'"model":"echoes"' in stream
        renamed = json.loads(json.dumps(events(itself)).replace("cpu0-gguf", "echoes"))
        assert numbers_left_out(events(stream)) == numbers_left_out(renamed)


def numbers_left_out(node: Any) -> Any:
    """Return it without usage, which tells what was cached."""
    if isinstance(node, dict):
        return {key: numbers_left_out(value) for key, value in node.items() if key != "usage"}
    return [numbers_left_out(item) for item in node] if isinstance(node, list) else node


async def test_errors_of_messages_are_in_anthropic_s_shape(mesh: Mesh) -> None:
    for path in ("/v1/messages", "/messages/count_tokens"):
        status, reply = await mesh.ask(path, {"model": "nobody", "messages": HI})
        assert (status, reply["type"]) == (404, "error")
        assert (
            reply["error"].items() >= {"type": "not_found_error", "code": "model_not_found"}.items()
        )
