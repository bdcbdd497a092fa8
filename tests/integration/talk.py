"""Streams with known contents: a model that counts, clients that check every word, and its slots."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.lab.mesh import Daemon
from tests.lab.models import TinyModel, make_model

WORDS = tuple(f"w{number}" for number in range(50))
CONTEXT = 65536
CHAT = "/v1/chat/completions"


def endless_model(model_id: str, *roles: str, parallel: int) -> Any:
    """Return the entry of a model that says the WORDS round and round; llama-server counts too.

    It has one thread: those of several llama-servers wait for each other without giving way.
    """
    path = make_model(TinyModel(name="endless", says=" ".join(WORDS), loop=True, context=CONTEXT))
    return {
        "model_id": model_id,
        "path": str(path),
        "roles": list(roles),
        "context_size": CONTEXT // 16,
        "parallel": parallel,
        "args": ["--metrics", "--threads", "1"],
    }


def expected(tokens: int) -> str:
    """Return what the model says in so many tokens: a word is one, and so is the last blank."""
    each = [WORDS[0], *(f" {word}" for word in WORDS[1:]), " "]
    return "".join(each[number % len(each)] for number in range(tokens))


@dataclass(slots=True)
class Heard:
    """What a client heard of one stream."""

    status: int = 0
    fields: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    ids: set[str] = field(default_factory=set)
    finish: str | None = None
    error: Mapping[str, Any] | None = None
    is_done: bool = False
    is_cut: bool = False

    @property
    def is_complete(self) -> bool:
        """Tell whether it ended as it should."""
        return self.is_done and not self.is_cut and self.error is None

    @property
    def is_signalled(self) -> bool:
        """Tell whether a client must have noticed that it is not whole."""
        return not self.is_done and (self.error is not None or self.is_cut)

    def has_said(self, tokens: int) -> bool:
        """Tell whether it is so many tokens, in order, and none of any other stream."""
        return self.text == expected(tokens) and len(self.ids) == 1

    def is_the_beginning_of(self, tokens: int) -> bool:
        """Tell whether what came is the beginning of so many tokens."""
        return expected(tokens).startswith(self.text) and len(self.ids) <= 1


async def listen(
    session: aiohttp.ClientSession,
    url: str,
    body: Mapping[str, Any],
    *,
    key: str | None = None,
    heard: Heard | None = None,
) -> Heard:
    """Ask for a stream and take it in; `heard` is filled as it comes."""
    heard = heard or Heard()
    headers = {} if key is None else {"X-Api-Key": key}
    try:
        async with session.post(url, json={**body, "stream": True}, headers=headers) as reply:
            heard.status, heard.fields = reply.status, reply.headers
            if reply.status != 200:
                heard.error = json.loads(await reply.read())["error"]
                return heard
            async for line in reply.content:
                take(heard, line)
    except aiohttp.ClientError:
        heard.is_cut = True
    return heard


def take(heard: Heard, line: bytes) -> None:
    """Take one line of a stream."""
    if not line.startswith(b"data: "):
        return
    data = line[6:].strip()
    assert not heard.is_done, f"something follows the end: {data!r}"
    if data == b"[DONE]":
        heard.is_done = True
        return
    event = json.loads(data)
    if "error" in event:
        heard.error = event["error"]
        return
    heard.ids.add(event["id"])
    for choice in event["choices"]:
        heard.text += choice["delta"].get("content") or ""
        heard.finish = choice["finish_reason"] or heard.finish


def asks_for(tokens: int, alias: str = "talker", says: str = "go", **more: Any) -> dict[str, Any]:
    """Return the body of a chat that is to be answered with so many tokens."""
    messages = [{"role": "user", "content": says}]
    return {"model": alias, "max_tokens": tokens, "messages": messages, **more}


def patient_session() -> aiohttp.ClientSession:
    """Return a session for any number of connections at once."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=120)
    )


# --- what llama-server itself says ------------------------------------------------------------


async def of_llama_server(agent: Daemon, instance: str, path: str) -> bytes:
    """GET something from an instance's llama-server, past the agent."""
    (socket,) = agent.state.rglob(f"{instance}/http.sock")
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(socket))) as session,
        session.get(f"http://localhost{path}") as reply,
    ):
        return await reply.read()


async def busy_slots(agent: Daemon, instance: str = "cpu0") -> int:
    """Return how many slots are at work."""
    slots = json.loads(await of_llama_server(agent, instance, "/slots"))
    return sum(slot["is_processing"] for slot in slots)


async def is_idle(agent: Daemon, instance: str = "cpu0") -> bool:
    """Tell whether llama-server works on nothing."""
    return await busy_slots(agent, instance) == 0


async def waiting_in_llama_server(agent: Daemon, instance: str = "cpu0") -> int:
    """Return how many requests it has put off because no slot was free."""
    text = (await of_llama_server(agent, instance, "/metrics")).decode()
    (line,) = [each for each in text.splitlines() if each.startswith("llamacpp:requests_deferred")]
    return int(float(line.split()[1]))


class Watch:
    """Looks at llama-servers again and again; `most_busy` and `most_waiting` are the largest seen."""

    def __init__(self, *places: tuple[Daemon, str]) -> None:
        self._places = places
        self.most_busy: dict[tuple[str, str], int] = {}
        self.most_waiting = 0
        self.looks = 0

    async def run(self) -> None:
        """Look until cancelled; one that does not answer is dead, or about to be."""
        while True:
            for agent, instance in self._places:
                try:
                    await self._look(agent, instance)
                except (aiohttp.ClientError, OSError, ValueError):
                    continue
            await asyncio.sleep(0.02)

    async def _look(self, agent: Daemon, instance: str) -> None:
        waiting = await waiting_in_llama_server(agent, instance)
        busy = await busy_slots(agent, instance)
        place = (agent.url, instance)
        self.most_waiting = max(self.most_waiting, waiting)
        self.most_busy[place] = max(self.most_busy.get(place, 0), busy)
        self.looks += 1
