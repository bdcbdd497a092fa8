"""A plain reply through the agent is the one that llama-server itself gives.

The agent asks llama-server for a stream and assembles it; each request here is asked both ways.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.conftest import StartDaemon, model
from tests.lab.mesh import Daemon, instance_is_ready, post_json
from tests.lab.poll import eventually

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
BEGUN = {"messages": [*HI["messages"], {"role": "assistant", "content": "Hello from"}]}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = {"tools": [{"type": "function", "function": {"name": "look", "parameters": CITY}}]}
MESSAGE_TOOLS = {"tools": [{"name": "look", "description": "", "input_schema": CITY}]}
RESPONSE_TOOLS = {"tools": [{"type": "function", "name": "look", "parameters": CITY}]}
THINKING: dict[str, Any] = {
    "messages": HI["messages"],
    "grammar": 'root ::= "so it is\\n</think>\\n\\nit is seven"',
    "max_tokens": 60,
}
CALL = '<tool_call>\n{"name": "look", "arguments": {"city": "New Rome"}}\n</tool_call>'

# Says in each turn of the assistant what was thought, so that llama-server looks for it.
THINKING_TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{%- if message.reasoning_content %}
<think>
{{ message.reasoning_content }}
</think>
{% endif %}
{%- if message.content %}
{{ message.content }}{% endif %}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{%- if enable_thinking is defined and enable_thinking %}
<think>
{% endif %}{% endif %}"""

EVERYWHERE: list[dict[str, Any]] = [
    {},
    {"stream": False},
    {"stream": None, "max_tokens": None},
    {"max_tokens": -1},
    {"max_tokens": 17, "ignore_eos": True},
    {"max_completion_tokens": 20, "ignore_eos": True},
    {"max_tokens": 5, "n_predict": 20, "ignore_eos": True},
    {"ignore_eos": True},
    {"n": 3},
    {"stop": ["seven"]},
    {"stop": " eight"},
    {"stop": ["eight . xyz", " seven nine"]},
    {"timings_per_token": True, "return_progress": True},
    {"return_progress": False, "stream_options": {"include_usage": False}},
    {"stream_options": 5},
    {"cache_prompt": True},
    {"json_schema": CITY, "max_tokens": 60},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": CITY}}},
    {"response_format": {"type": "json_object"}, "max_tokens": 40},
    {"grammar": 'root ::= "\u00e9\u65e5\u672c\u8a9e\U0001f600\\n\\t"'},
    {"grammar": 'root ::= ""'},
    {"return_tokens": True, "echo": True, "suffix": "x", "user": "me"},
    {"logit_bias": [[10, -100]], "samplers": ["top_k"], "min_p": 0.1},
    # as they are, because a stream would say something else
    {"max_tokens": 3},
    {"logprobs": True, "stop": ["seven"]},
    {"n_probs": 2},
    # refused
    {"n": 9},
    {"stream": 1},
    {"max_tokens": "many"},
    {"grammar": "no grammar"},
    {"lora": 5},
    {"return_progress": "yes"},
]
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    BEGUN,
    {**BEGUN, "echo": False, "n": 2},
    {**BEGUN, "continue_final_message": True, "add_generation_prompt": False},
    {"grammar": 'root ::= "\U0001f600\U0001f600\U0001f600\U0001f600\U0001f600"', "max_tokens": 18},
    {**TOOLS},
    {**TOOLS, "tool_choice": "none"},
    {"messages": []},
    {"messages": "hi"},
    {"messages": [{"role": "user", "content": "hi " * 2000}]},
    {**TOOLS, "grammar": 'root ::= "x"'},
]
TEXTS: list[dict[str, Any]] = [
    {"prompt": ["hi", "there"]},
    {"prompt": ["hi", "there"], "n": 2},
    {"prompt": [1, 2, 3]},
    {"prompt": [[1, 2, 3], [4, 5]]},
    {"prompt": ""},
    {"prompt": []},
    {"prompt": "hi " * 2000},
    {"prompt": ["hi", "hi " * 2000]},
]
MESSAGE_BODIES: list[dict[str, Any]] = [
    {},
    {"stream": False},
    {"max_tokens": 17},
    {"max_tokens": 60, "system": "Be brief ."},
    {"max_tokens": 60, "stop_sequences": ["seven"]},
    {"max_tokens": 60, "stop_sequences": ["Hello"]},
    {"max_tokens": 60, "stop_sequences": ["eight . xyz", " seven nine"]},
    {"max_tokens": 60, "top_k": 3, "top_p": 0.9, "metadata": {"user_id": "me"}},
    {"max_tokens": 60, "n": 3},
    {"max_tokens": 60, **MESSAGE_TOOLS},
    {"max_tokens": 60, **MESSAGE_TOOLS, "tool_choice": {"type": "auto"}},
    {"max_tokens": 60, **BEGUN},
    {"max_tokens": 60, **BEGUN, "stop_sequences": [" from"]},
    {"max_tokens": 60, **BEGUN, "stop_sequences": [" Hello", "small"]},
    *(
        {"messages": [*HI["messages"], {"role": "assistant", "content": content}]}
        for content in (
            [{"type": "text", "text": "Hello from"}],
            [{"type": "text", "text": "Hello"}, {"type": "text", "text": " from"}],
            [{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "Hello from"}],
            [{"type": "tool_use", "id": "x", "name": "look", "input": {}}],
            "  Hello ",
            "",
            None,
        )
    ),
    {"messages": []},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    # as they are
    {"max_tokens": 3},
    {"max_tokens": 0},
    # refused
    {"messages": [{"role": "user", "content": "hi " * 2000}]},
    {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
    {"messages": 5, "max_tokens": "many"},
    {"stream": 1},
    {"stop_sequences": [5]},
]
RESPONSE_BODIES: list[dict[str, Any]] = [
    {},
    {"stream": False},
    {"max_output_tokens": 17, "ignore_eos": True},
    {"max_output_tokens": 5, "n_predict": 20, "ignore_eos": True},
    {"ignore_eos": True},
    {"instructions": "Be brief ."},
    {"stop": ["seven"]},
    {"stop": ["Hello"]},
    {"logprobs": True},
    {"n_probs": 2},
    {"verbose": True, "timings_per_token": True, "return_progress": True},
    {"grammar": 'root ::= "\u00e9\u65e5\u672c\u8a9e\U0001f600\\n\\t"'},
    {"grammar": 'root ::= "\U0001f600\U0001f600\U0001f600\U0001f600\U0001f600"', "n_predict": 18},
    {"grammar": 'root ::= ""'},
    {"json_schema": CITY, "max_output_tokens": 60},
    {"reasoning": {"effort": "low"}, "store": False, "metadata": {}},
    {**RESPONSE_TOOLS},
    {**RESPONSE_TOOLS, "tool_choice": "none"},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]},
    {
        "input": [
            {"role": "user", "content": "hi"},
            {"type": "message", "role": "assistant", "content": "Hello from"},
        ]
    },
    # as they are
    {"max_output_tokens": 3},
    {"n": 2},
    # refused
    {"input": []},
    {"input": 5},
    {"input": "hi " * 2000},
    {"previous_response_id": "resp_1"},
    {"max_output_tokens": "many"},
    {"return_progress": "yes"},
    {"n": 9},
]
REQUESTS = [
    *((CHAT, {**HI, **body}) for body in (*EVERYWHERE, *CHATS)),
    *((TEXT, {"prompt": "hi", **body}) for body in (*EVERYWHERE, *TEXTS)),
    *((MESSAGES, {**HI, **body}) for body in MESSAGE_BODIES),
    *((RESPONSES, {"input": "hi", **body}) for body in RESPONSE_BODIES),
]
CALLS: list[dict[str, Any]] = [
    {},
    {"parallel_tool_calls": True},
    {"tool_choice": "required"},
    {"n": 2},
    {"stop": ["Rome"]},
    *({"max_tokens": limit} for limit in range(17, 28)),
]
MESSAGE_CALLS: list[dict[str, Any]] = [
    {},
    {"tool_choice": {"type": "any"}},
    {"stop_sequences": ["Rome"]},
    *({"max_tokens": limit} for limit in range(17, 28)),
]
RESPONSE_CALLS: list[dict[str, Any]] = [
    {},
    {"parallel_tool_calls": True},
    {"tool_choice": "required"},
    {"stop": ["Rome"]},
    *({"max_output_tokens": limit} for limit in range(17, 28)),
]
THOUGHTS: list[dict[str, Any]] = [
    {},
    *({"reasoning_format": name} for name in ("none", "auto", "deepseek", "deepseek-legacy")),
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_format": "none"},
    {"reasoning_budget_tokens": 2},
    {"stop": ["</think>"]},
    {"n": 2},
    {"max_tokens": 17},
]


@dataclass(frozen=True, slots=True)
class Node:
    """An agent, and the socket of its llama-server."""

    agent: Daemon
    socket: Path

    async def ask(self, path: str, body: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return what the agent and what llama-server answers."""
        tree = {"model": "small", "temperature": 0, "seed": 7, "cache_prompt": False, **body}
        if tree["cache_prompt"] or path == MESSAGES:  # which cannot be told to leave it
            await self._ask_directly(path, tree)  # so that both find the same in the cache
        itself = await self._ask_directly(path, tree)
        return await post_json(self.agent.url + path, tree), itself

    async def _ask_directly(self, path: str, tree: Any) -> tuple[int, Any]:
        connector = aiohttp.UnixConnector(path=str(self.socket))
        async with (
            aiohttp.ClientSession("http://localhost", connector=connector) as session,
            session.post(path, json=tree) as reply,
        ):
            return reply.status, json.loads(await reply.read())


@pytest.fixture
def open_node(start_agent: StartDaemon, make_model: Callable[..., Path]) -> Callable[..., Any]:
    """Start an agent with one model of four slots: async with open_node(says=..., args=...)."""

    @asynccontextmanager
    async def start(
        says: str = "", args: tuple[str, ...] = (), size: int = 1024, *, loop: bool = False
    ) -> AsyncIterator[Node]:
        path = make_model("small", says=says, loop=loop)
        entry = {**model(path, "small", "s", parallel=4, context_size=size), "args": list(args)}
        configuration = {"models": [entry], "instances": {"cpu0": {"model": "small"}}}
        agent = await start_agent("box", configuration)
        await eventually(lambda: instance_is_ready(agent), what="cpu0 ready")
        (socket,) = agent.state.rglob("http.sock")
        yield Node(agent, socket)

    return start


def comparable(node: Any, key: str = "") -> Any:
    """Return a reply without what differs from one to the next: ids, times, and how long it took."""
    if key in ("id", "call_id", "created", "created_at", "completed_at"):
        return type(node)
    if key == "timings":
        return sorted(node)
    if isinstance(node, dict):
        return {name: comparable(value, name) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [comparable(item) for item in node]
    return node


async def differing(node: Node, requests: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    """Ask both ways; return what was not answered alike."""
    found = []
    for path, body in requests:
        by_agent, itself = await node.ask(path, body)
        if comparable(by_agent) != comparable(itself):
            found.append((path, body, by_agent, itself))
    return found


async def test_a_plain_reply_is_the_one_of_llama_server(open_node: Callable[..., Any]) -> None:
    async with open_node() as node:
        assert await differing(node, REQUESTS) == []


async def test_tool_calls_are_those_of_llama_server(open_node: Callable[..., Any]) -> None:
    async with open_node(says=f"I will look at it now .{CALL}{CALL.replace(' ', '  ')}") as node:
        calls = [
            *((CHAT, {**HI, **TOOLS, **body}) for body in CALLS),
            *((MESSAGES, {**HI, **MESSAGE_TOOLS, **body}) for body in MESSAGE_CALLS),
            *((RESPONSES, {"input": "hi", **RESPONSE_TOOLS, **body}) for body in RESPONSE_CALLS),
        ]
        assert await differing(node, calls) == []
        (_, answer), _ = await node.ask(CHAT, {**HI, **TOOLS})
        call, *_ = answer["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": "New Rome"}


async def test_reasoning_is_that_of_llama_server(
    open_node: Callable[..., Any], tmp_path: Path
) -> None:
    template = tmp_path / "template"
    template.write_text(THINKING_TEMPLATE)
    async with open_node(args=("--chat-template-file", str(template))) as node:
        thoughts = [
            *((CHAT, {**THINKING, **body}) for body in THOUGHTS),
            *((RESPONSES, {"input": "hi", **THINKING, **body}) for body in THOUGHTS),
        ]
        assert await differing(node, thoughts) == []
        (_, answer), _ = await node.ask(CHAT, THINKING)
        message = answer["choices"][0]["message"]
        assert message["reasoning_content"].strip() == "so it is"
        assert message["content"].strip() == "it is seven"


async def test_a_message_with_reasoning_is_that_of_llama_server(
    open_node: Callable[..., Any], tmp_path: Path
) -> None:
    """A message takes no grammar: the model itself has to think."""
    template = tmp_path / "template"
    template.write_text(THINKING_TEMPLATE)
    says = "so it is\n</think>\n\nit is seven of nine one two three four five six"
    async with open_node(says=says, args=("--chat-template-file", str(template))) as node:
        asked: dict[str, Any] = {**HI, "chat_template_kwargs": {"enable_thinking": True}}
        messages = [
            (MESSAGES, {**asked, **body})
            for body in (
                dict[str, Any](),
                {"thinking": {"type": "enabled", "budget_tokens": 1000}},
                {"chat_template_kwargs": {"enable_thinking": False}},
                {"stop_sequences": ["</think>"]},
                {"stop_sequences": ["seven"]},
                BEGUN,
                *({"max_tokens": limit} for limit in (17, 19, 21, 23, 25)),
            )
        ]
        assert await differing(node, messages) == []
        (_, answer), _ = await node.ask(MESSAGES, asked)
        assert [block["type"] for block in answer["content"]] == ["thinking", "text"]


async def test_an_error_in_the_middle_is_that_of_llama_server(
    open_node: Callable[..., Any],
) -> None:
    # Two answers at once do not fit into the context that all slots share.
    async with open_node(args=("--kv-unified",), size=64, loop=True) as node:
        body = {"prompt": ["hi", "hi"], "ignore_eos": True}
        by_agent, itself = await node.ask(TEXT, body)
        assert by_agent == itself
        assert by_agent[0] == 500
        # Of these no request asks for two answers, so two are asked for.
        for path, asked in (
            (MESSAGES, {**HI, "model": "small", "max_tokens": 500}),
            (RESPONSES, {"input": "hi", "model": "small"}),
        ):
            url = node.agent.url + path
            answers = await asyncio.gather(post_json(url, asked), post_json(url, asked))
            assert itself in answers


async def test_a_text_that_is_cut_within_a_character_ends_before_it(
    open_node: Callable[..., Any],
) -> None:
    """The one known difference of a text: llama-server writes U+FFFD for the piece of it."""
    async with open_node() as node:
        smiles = "\U0001f600" * 9
        body = {"prompt": "hi", "grammar": f'root ::= "{smiles}"', "max_tokens": 19}
        (_, by_agent), (_, itself) = await node.ask(TEXT, body)
        assert itself["choices"][0]["text"] == smiles[:4] + "\ufffd"
        assert by_agent["choices"][0]["text"] == smiles[:4]
