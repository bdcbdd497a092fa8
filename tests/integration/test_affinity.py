"""Follow-ups go to the instance whose KV cache holds their conversation, unless it is overloaded.

Measured beside nginx's round robin, which asks the same llama-servers straight. Those say themselves
how much of each prompt they had cached. Only ratios are compared: times are the machine's.
"""

import asyncio
import json
import random
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import aiohttp
import pytest

from tests.integration.conftest import StartDaemon, model
from tests.lab.mesh import Daemon, instances
from tests.lab.models import COMMON_WORDS
from tests.lab.nginx import round_robin
from tests.lab.poll import eventually

MODEL = "talker-gguf"
INSTANCES = ("cpu0", "cpu1")
SLOTS = 2

CONVERSATIONS, TURNS = 8, 6
AT_ONCE = len(INSTANCES) * SLOTS
"""How many turns are asked at once: with more, the wait for a slot would hide that for a token."""

SYSTEM_WORDS, TURN_WORDS, ANSWER_TOKENS = 350, 12, 8

LEAST_REUSED = 0.99
MOST_TTFT = 0.5
MOST_TOTAL = 1.0
COMPARISONS = 3
"""How often both are measured at most: what else runs on the machine may disturb one of them."""


@dataclass(slots=True, kw_only=True)
class Figures:
    """What all conversations came to; tokens and seconds to the first token are of follow-ups."""

    reusable: int = 0
    reused: int = 0
    first_token_s: list[float] = field(default_factory=list)
    total_s: float = 0.0

    @property
    def share_reused(self) -> float:
        return self.reused / self.reusable

    @property
    def mean_ttft_s(self) -> float:
        return statistics.fmean(self.first_token_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one request, as llama-server itself says it; `first_token_s` is measured here."""

    text: str
    prompt_tokens: int
    cached_tokens: int
    first_token_s: float


async def ask(session: aiohttp.ClientSession, url: str, messages: list[dict[str, str]]) -> Answer:
    """Ask for the next turn of a conversation."""
    body = {
        "model": MODEL,
        "messages": messages,
        "max_tokens": ANSWER_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    loop = asyncio.get_running_loop()
    usage: dict[str, Any] = {}
    asked_at, first_at, text = loop.time(), 0.0, ""
    async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
        assert reply.status == 200, await reply.text()
        async for line in reply.content:
            if line.startswith(b"data: {"):
                event = json.loads(line.removeprefix(b"data: "))
                assert "error" not in event, event
                text += "".join(each["delta"].get("content") or "" for each in event["choices"])
                first_at = first_at or (loop.time() if text else 0.0)
                usage = event.get("usage") or usage
    return Answer(
        text=text,
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
        first_token_s=first_at - asked_at,
    )


async def converse(url: str, seed: str, figures: Figures, at_once: asyncio.Semaphore) -> None:
    """Hold one conversation; each turn waits until it is among those asked at once."""
    words = random.Random(seed)
    # Words that the model's vocabulary lacks are some tokens each: reading them takes its time.
    rare = ["".join(words.choices(ascii_lowercase, k=3)) for _ in range(SYSTEM_WORDS)]
    messages = [{"role": "system", "content": " ".join((seed, *rare))}]
    reusable = 0
    async with aiohttp.ClientSession() as session:
        for turn in range(TURNS):
            said = " ".join(words.choices(COMMON_WORDS, k=TURN_WORDS))
            messages.append({"role": "user", "content": said})
            async with at_once:
                answer = await ask(session, url, messages)
            if turn:
                figures.reusable += reusable
                figures.reused += min(answer.cached_tokens, reusable)
                figures.first_token_s.append(answer.first_token_s)
            reusable = answer.prompt_tokens
            messages.append({"role": "assistant", "content": answer.text})


async def hold_conversations(url: str, seed: str) -> Figures:
    """Hold all conversations, interleaved."""
    figures, loop = Figures(), asyncio.get_running_loop()
    at_once, since = asyncio.Semaphore(AT_ONCE), loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(CONVERSATIONS):
            group.create_task(converse(url, f"{seed} {number}", figures, at_once))
    figures.total_s = loop.time() - since
    return figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The same conversations by both ways, as far as their shape goes; the words are others."""

    straight: Figures
    mesh: Figures

    @property
    def ttft(self) -> float:
        return self.mesh.mean_ttft_s / self.straight.mean_ttft_s

    @property
    def total(self) -> float:
        return self.mesh.total_s / self.straight.total_s

    @property
    def is_good(self) -> bool:
        return (
            self.mesh.share_reused >= LEAST_REUSED
            and self.ttft <= MOST_TTFT
            and self.total <= MOST_TOTAL
        )

    def __str__(self) -> str:
        return (
            f"reused {self.mesh.share_reused:.1%} (round robin {self.straight.share_reused:.1%}), "
            f"time to first token {self.ttft:.2f} x, total time {self.total:.2f} x"
        )


@pytest.fixture
async def mesh(
    start_gateway: StartDaemon, start_agent: StartDaemon, make_model: Callable[..., Path]
) -> tuple[Daemon, Daemon]:
    """Start a gateway, and an agent with two instances of a model of 64 MiB."""
    gateway = await start_gateway({"models": {MODEL: {"type": "discovered", "role": "talker"}}})
    path = make_model("affinity", says="yes it is so and not", loop=True, context=8192, big_mib=64)
    talker = {
        **model(path, MODEL, "talker", context_size=4096, parallel=SLOTS),
        "args": ["--threads", "1", "--threads-batch", "1"],
    }
    configuration = {
        "models": [talker],
        "instances": {name: {"model": MODEL} for name in INSTANCES},
    }
    agent = await start_agent("box", configuration, gateway)
    await eventually(lambda: is_known_to(gateway, agent), what="both known", deadline_s=60)
    return gateway, agent


async def is_known_to(gateway: Daemon, agent: Daemon) -> bool:
    """Tell whether both instances are ready, and the gateway tells them apart."""
    states = {each["state"] for each in (await instances(agent)).values()}
    if states != {"ready"}:
        return False
    asked = [await answered_by(gateway, f"who is there? {number}") for number in range(4)]
    return set(asked) == set(INSTANCES)


async def answered_by(gateway: Daemon, *says: str) -> str:
    """Return which instance answers a short chat."""
    async with aiohttp.ClientSession() as session:
        body = {"model": MODEL, "messages": chat(*says), "max_tokens": 1}
        async with session.post(f"{gateway.url}/v1/chat/completions", json=body) as reply:
            assert reply.status == 200, await reply.text()
            return reply.headers["X-RoleMesh-Instance"]


def chat(*says: str) -> list[dict[str, str]]:
    return [
        {"role": ("user", "assistant")[number % 2], "content": text}
        for number, text in enumerate(says)
    ]


@pytest.mark.timeout(600)
async def test_follow_ups_find_their_beginning_cached(
    mesh: tuple[Daemon, Daemon], short_path: Path
) -> None:
    gateway, agent = mesh
    sockets = sorted(agent.state.rglob("http.sock"))
    assert len(sockets) == len(INSTANCES)
    made: list[Comparison] = []
    async with round_robin(short_path / "nginx", sockets) as straight:
        for number in range(COMPARISONS):
            made.append(
                Comparison(
                    straight=await hold_conversations(straight, f"straight {number}"),
                    mesh=await hold_conversations(gateway.url, f"mesh {number}"),
                )
            )
            if made[-1].is_good:
                break
    assert made[-1].is_good, "\n".join(map(str, made))


async def test_a_full_instance_keeps_nobody_from_an_answer(mesh: tuple[Daemon, Daemon]) -> None:
    gateway, _ = mesh
    begun = (" ".join(COMMON_WORDS), "so it is")
    holder = await answered_by(gateway, begun[0])
    async with (
        talking(gateway, *begun, "on one hand?") as first,
        talking(gateway, *begun, "on the other?") as second,
    ):
        assert first == second == holder  # although the other one is idle
        elsewhere = await answered_by(gateway, *begun, "anybody there?")
        assert elsewhere != holder
    assert await answered_by(gateway, *begun, "anybody there?", "yes", "good") == elsewhere


@asynccontextmanager
async def talking(gateway: Daemon, *says: str) -> AsyncIterator[str]:
    """Keep a long answer going for the length of the block; yields which instance gives it."""
    body = {"model": MODEL, "messages": chat(*says), "max_tokens": 3000, "stream": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.url}/v1/chat/completions", json=body) as reply,
    ):
        assert reply.status == 200, await reply.text()
        await reply.content.readuntil(b"\n\n")
        yield reply.headers["X-RoleMesh-Instance"]
