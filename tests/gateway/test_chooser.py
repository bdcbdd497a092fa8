"""Where growing conversations go: the real admission and selection, over simulated llama-servers.

A simulated llama-server has slots and a KV cache that holds every conversation it has answered. It
reads what is new of a prompt and then says its answer, in virtual time.
"""

import asyncio
import json
import random
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest

from rolemesh.config.settings import Limits
from rolemesh.gateway.admission import Admission, Claim
from rolemesh.gateway.affinity import AffinityIndex
from rolemesh.gateway.chooser import Chooser
from rolemesh.gateway.routing_table import Candidate, Target
from rolemesh.gateway.selection import Load, waited_for
from rolemesh.gateway.trip import Trip
from rolemesh.runtime.keys import ANYONE
from tests.gateway.builders import candidate, target
from tests.gateway.trips import trip_alone
from tests.lab.virtual_time import run_in_virtual_time

SYSTEM_BYTES, TURN_BYTES = 2000, 120
READ_S_PER_BYTE = 1 / 6000
WORD_S = 1 / 160


@dataclass(slots=True, kw_only=True)
class Scene:
    """Who talks: so many conversations, of which so many turns are asked at once.

    One of the servers is taken by somebody else until `joins_at_s`.
    """

    conversations: int = 8
    turns: int = 6
    at_once: int = 4
    servers: int = 2
    slots: int = 2
    words: int = 8
    think_s: float = 0.0
    joins_at_s: float = 0.0
    seed: int = 0


@dataclass(slots=True)
class Figures:
    """What came of it; first_byte_s are those of follow-ups, waited_s of all."""

    reusable: int = 0
    reused: int = 0
    first_byte_s: list[float] = field(default_factory=list)
    total_s: float = 0.0

    @property
    def share_reused(self) -> float:
        return self.reused / self.reusable


class Server:
    """A simulated llama-server."""

    def __init__(self, rolls: random.Random, slots: int) -> None:
        self._rolls = rolls
        self._slots = asyncio.Semaphore(slots)
        self._cached: dict[int, int] = {}

    async def answer(self, number: int, size: int, words: int) -> tuple[int, float]:
        """Answer a turn of a conversation; return how much of it was cached, and when it began."""
        loop = asyncio.get_running_loop()
        async with self._slots:
            cached = self._cached.get(number, 0)
            await asyncio.sleep((size - cached) * READ_S_PER_BYTE * self._rolls.uniform(0.8, 1.2))
            first_at = loop.time()
            await asyncio.sleep(words * WORD_S * self._rolls.uniform(0.8, 1.2))
            self._cached[number] = size
        return cached, first_at


Ask = Callable[[int, list[dict[str, str]], int], Awaitable[tuple[int, float]]]
"""Has a turn of a conversation answered: its number, messages and size in bytes."""


async def talk(scene: Scene, ask: Ask, rolls: random.Random) -> Figures:
    """Hold all conversations."""
    figures, loop = Figures(), asyncio.get_running_loop()
    at_once, since = asyncio.Semaphore(scene.at_once), loop.time()

    async def converse(number: int) -> None:
        messages = [{"role": "system", "content": f"{number} ".ljust(SYSTEM_BYTES, "x")}]
        size = SYSTEM_BYTES
        for turn in range(scene.turns):
            before = size if turn else 0
            messages.append({"role": "user", "content": f"{turn} ".ljust(TURN_BYTES, "y")})
            size += TURN_BYTES
            async with at_once:
                asked_at = loop.time()
                cached, first_at = await ask(number, list(messages), size)
            figures.reusable += before
            figures.reused += min(cached, before)
            if turn:
                figures.first_byte_s.append(first_at - asked_at)
            messages.append({"role": "assistant", "content": "so it is"})
            await asyncio.sleep(scene.think_s * rolls.uniform(0.5, 1.5))

    async with asyncio.TaskGroup() as group:
        for number in range(scene.conversations):
            group.create_task(converse(number))
    figures.total_s = loop.time() - since
    return figures


async def round_robin(scene: Scene) -> Figures:
    """Ask each server in turn; there requests wait in the order they came."""
    rolls = random.Random(scene.seed)
    servers = [Server(rolls, scene.slots) for _ in range(scene.servers)]
    turn = 0

    async def ask(number: int, messages: list[dict[str, str]], size: int) -> tuple[int, float]:
        nonlocal turn
        turn += 1
        return await servers[turn % len(servers)].answer(number, size, scene.words)

    return await talk(scene, ask, rolls)


async def gateway(scene: Scene) -> Figures:
    """Ask as a gateway does."""
    rolls = random.Random(scene.seed)
    nodes = [candidate(f"n{index}", slots=scene.slots) for index in range(scene.servers)]
    servers = {each.key: Server(rolls, scene.slots) for each in nodes}
    admission, offered = Admission(Limits()), target(*nodes)
    loop = asyncio.get_running_loop()
    chooser = Chooser(admission, AffinityIndex(clock=loop.time))
    if scene.joins_at_s:
        other = Claim(offered.alias, ANYONE, 1, scene.slots, loop.time())
        admission.acquire(other, nodes[-1])
        loop.call_later(scene.joins_at_s, admission.release, other)

    async def ask(number: int, messages: list[dict[str, str]], size: int) -> tuple[int, float]:
        trip = new_trip(messages)
        taken = await admit(admission, chooser, trip, offered)
        chooser.set_out(trip, taken)
        trip.attempt_at = loop.time()
        try:
            cached, first_at = await servers[taken.key].answer(number, size, scene.words)
        finally:
            admission.release(trip.claim)
        trip.first_byte_at = first_at
        chooser.answered(trip, taken)
        return cached, first_at

    return await talk(scene, ask, rolls)


def new_trip(messages: list[dict[str, str]]) -> Trip:
    body = json.dumps({"model": "coder", "stream": True, "messages": messages}).encode()
    return trip_alone("/v1/chat/completions", body, {}, asyncio.get_running_loop().time())


async def admit(admission: Admission, chooser: Chooser, trip: Trip, offered: Target) -> Candidate:
    """Hold a slot of whoever takes the request, as the dispatcher does."""

    def choose(load: Load) -> Candidate | frozenset[tuple[str, str | None, str | None]]:
        return chooser.select(trip, offered, load) or waited_for(offered, failed=frozenset())

    if not admission.waiting():
        at_once = choose(admission.load)
        if isinstance(at_once, Candidate):
            admission.acquire(trip.claim, at_once)
            return at_once
    return await admission.choose(trip.claim, choose, until=1e9)


def compare(scene: Scene) -> tuple[Figures, float, float]:
    """Return what the gateway reaches, and the ratios of first bytes and of the whole time."""
    straight, ours = run_in_virtual_time(round_robin(scene)), run_in_virtual_time(gateway(scene))
    first_byte = statistics.fmean(ours.first_byte_s) / statistics.fmean(straight.first_byte_s)
    return ours, first_byte, ours.total_s / straight.total_s


def test_follow_ups_find_their_beginning_cached() -> None:
    for seed in range(5):
        ours, first_byte, total = compare(Scene(seed=seed))
        assert ours.share_reused == 1.0
        assert first_byte < 0.35
        assert total < 0.75


@pytest.mark.parametrize(
    "scene",
    [
        Scene(at_once=8),
        Scene(at_once=8, words=100),
        Scene(at_once=8, think_s=0.3),
        Scene(at_once=10, conversations=10, servers=3, slots=4),
        Scene(at_once=9, conversations=9),
        Scene(at_once=16, conversations=16),
        Scene(at_once=32, conversations=32, servers=4),
        Scene(at_once=20, conversations=20, think_s=0.5),
    ],
)
def test_where_more_is_asked_than_there_are_slots_they_wait_for_their_own(scene: Scene) -> None:
    for scene.seed in range(3):
        ours, first_byte, total = compare(scene)
        assert ours.share_reused >= 0.99
        assert first_byte < 1
        assert total < 1.02


def test_one_after_another_is_as_good_as_asked_straight() -> None:
    ours, first_byte, total = compare(Scene(at_once=1))
    assert ours.share_reused == 1.0
    assert first_byte == pytest.approx(1.0, abs=0.01)
    assert total == pytest.approx(1.0, abs=0.01)


def test_an_overloaded_server_sheds_conversations() -> None:
    crowd = Scene(conversations=12, at_once=12, turns=20)
    alone, joined, even = (
        run_in_virtual_time(gateway(replace(crowd, joins_at_s=at_s))).total_s
        for at_s in (1000.0, 3.0, 0.0)
    )
    assert even < joined < 0.8 * alone
