"""Whose turn it is: classes, fairness between keys, reserved slots, and what a key may have."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rolemesh.runtime.tasks import TaskScope
from tests.fakes.upstream import Conversation, Upstream, answers
from tests.gateway.conftest import StartGateway, StartUpstream
from tests.gateway.harness import Running
from tests.lab.poll import eventually

OK = answers(b'{"ok": true}')


class Gate:
    """A script that lets requests through one by one; `came` are their names, in order."""

    def __init__(self) -> None:
        self.came: list[str] = []
        self.under_way = 0
        self.most_under_way = 0
        self._passes = asyncio.Semaphore(0)

    async def __call__(self, conversation: Conversation) -> None:
        self.came.append(conversation.json["who"])
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await self._passes.acquire()
        self.under_way -= 1
        await OK(conversation)

    def open(self, times: int = 1) -> None:
        for _ in range(times):
            self._passes.release()


class Stage:
    """A gateway before a gate; each request has a name, and a key if there are keys."""

    def __init__(self, gateway: Running, gate: Gate, up: Upstream, scope: TaskScope) -> None:
        self.gateway = gateway
        self.gate = gate
        self.up = up
        self._scope = scope
        self._asked: list[asyncio.Task[Any]] = []

    def ask(self, who: str, alias: str = "coder", key: str = "", **body: Any) -> None:
        fields = [f"Authorization: Bearer {key}-key"] if key else []
        asking = self.gateway.chat(alias, *fields, who=who, **body)
        self._asked.append(self._scope.start(asking, name=who))

    async def queue(self, *whos: str, alias: str = "coder", key: str = "", **body: Any) -> None:
        """Have requests wait, one after another."""
        for who in whos:
            before = self.waiting()
            self.ask(who, alias, key, **body)
            await eventually(lambda: self.waiting() > before, what=f"{who} waits")  # noqa: B023

    async def run(self, *whos: str, alias: str = "coder", key: str = "", **body: Any) -> None:
        """Have requests come to the upstream, one after another."""
        for who in whos:
            self.ask(who, alias, key, **body)
            await self.has_come(who)

    async def has_come(self, who: str) -> None:
        await eventually(lambda: who in self.gate.came, what=f"{who} came to the upstream")

    def waiting(self) -> int:
        return len(self.gateway.gateway._admission._waiting)

    async def finish(self) -> list[str]:
        """Let everything through, in as many steps; returns in which order it came."""
        while not all(task.done() for task in self._asked):
            done = sum(task.done() for task in self._asked)
            self.gate.open()
            await eventually(
                lambda: sum(task.done() for task in self._asked) > done,  # noqa: B023
                what="one is answered",
            )
        assert {(await task).status for task in self._asked} == {200}
        assert self.gateway.in_flight() == 0
        assert self.waiting() == 0
        return self.gate.came


@pytest.fixture
async def scope() -> AsyncIterator[TaskScope]:
    async with TaskScope() as scope:
        yield scope


@pytest.fixture
def stage(start_gateway: StartGateway, start_upstream: StartUpstream, scope: TaskScope) -> Any:
    """Set one up: await stage(slots, **configuration); its aliases are proxies or roles of a node."""

    async def start(slots: int = 1, roles: tuple[str, ...] = ("coder",), **config: Any) -> Stage:
        gate = Gate()
        up = await start_upstream(gate)
        gateway = await start_gateway(**config)
        await gateway.register("box", up, {"model_id": "m", "roles": list(roles), "slots": slots})
        return Stage(gateway, gate, up, scope)

    return start


def clients(**members: dict[str, Any]) -> dict[str, Any]:
    """Return `auth` with named keys."""
    keys = {name: {"key": f"{name}-key", **more} for name, more in members.items()}
    return {"auth": {"clients": keys}}


def roles(**members: dict[str, Any]) -> dict[str, Any]:
    """Return `models` with aliases of the role coder."""
    models = {
        name: {"type": "discovered", "role": "coder", **more} for name, more in members.items()
    }
    return {"models": models}


# --- order ------------------------------------------------------------------------------------


async def test_aliases_wait_by_their_class_and_then_by_arrival(stage: Any) -> None:
    classes = roles(fast={"priority": "interactive"}, coder={}, slow={"priority": "batch"})
    at = await stage(**classes)
    await at.run("first")
    await at.queue("slow1", "slow2", alias="slow")
    await at.queue("mid1")
    await at.queue("fast1", "fast2", alias="fast")
    await at.queue("mid2")
    assert await at.finish() == ["first", "fast1", "fast2", "mid1", "mid2", "slow1", "slow2"]


async def test_a_key_may_lower_its_class_but_not_raise_it(stage: Any) -> None:
    keys = clients(ci={"priority": "batch"}, vip={"priority": "interactive"}, any={})
    classes = roles(coder={}, slow={"priority": "batch"})
    at = await stage(**keys, **classes)
    await at.run("first", key="any")
    await at.queue("ci", key="ci")
    await at.queue("vip", key="vip")
    await at.queue("vip-slow", key="vip", alias="slow")
    await at.queue("any", key="any")
    assert await at.finish() == ["first", "vip", "any", "ci", "vip-slow"]


async def test_keys_take_turns(stage: Any) -> None:
    at = await stage(**clients(many={}, few={}))
    await at.run("first", key="many")
    await at.queue("m1", "m2", "m3", "m4", key="many")
    await at.queue("f1", "f2", key="few")
    assert await at.finish() == ["first", "m1", "f1", "m2", "f2", "m3", "m4"]


async def test_who_had_its_turns_meanwhile_goes_on_as_before(stage: Any) -> None:
    """A key that comes again and again to a queue that never empties gets no more than its share."""
    at = await stage(**clients(many={}, few={}))
    await at.run("first", key="many")
    await at.queue("m1", "m2", "m3", key="many")
    for number in range(1, 4):
        await at.queue(f"f{number}", key="few")
        at.gate.open(2)
        await at.has_come(f"f{number}")
        await eventually(lambda: at.gate.under_way == 1, what="the one before is answered")
    assert (await at.finish())[:7] == ["first", "m1", "f1", "m2", "f2", "m3", "f3"]


async def test_what_a_key_asks_for_in_another_class_or_of_another_alias_costs_it_no_turn(
    stage: Any,
) -> None:
    classes = roles(coder={}, critic={}, slow={"priority": "batch"})
    at = await stage(**clients(busy={}, other={}), **classes)
    await at.run("first", key="other")
    await at.queue("s1", "s2", "s3", alias="slow", key="busy")
    await at.queue("o1", "o2", key="other")
    await at.queue("r1", "r2", "r3", alias="critic", key="busy")
    await at.queue("b1", key="busy")
    assert (await at.finish())[:4] == ["first", "o1", "r1", "b1"]


async def test_nobody_overtakes_a_large_request(stage: Any) -> None:
    at = await stage(slots=2)
    await at.run("first")
    await at.queue("large", n=2)
    await at.queue("small")
    assert at.gate.came == ["first"]
    at.gate.open()
    await at.has_come("large")
    assert at.gate.came == ["first", "large"]
    assert await at.finish() == ["first", "large", "small"]


async def test_who_waits_for_one_node_does_not_hold_up_another(
    stage: Any, start_upstream: StartUpstream
) -> None:
    at = await stage(**roles(coder={}), roles=("coder",))
    other = Gate()
    await at.gateway.reload(
        {"models": {"coder": {"type": "discovered"}, "critic": {"type": "discovered"}}}
    )
    await at.gateway.register(
        "other",
        await start_upstream(other),
        {"model_id": "m2", "roles": ["critic"], "slots": 1},
    )
    await at.run("first")
    await at.queue("second")
    at.ask("elsewhere", alias="critic")
    await eventually(lambda: other.came == ["elsewhere"], what="it did not wait")
    other.open()
    assert await at.finish() == ["first", "second"]


async def test_what_costs_no_slot_waits_for_none(stage: Any) -> None:
    at = await stage()
    await at.run("first")
    await at.queue("second")
    at.gate.open(3)
    reply = await at.gateway.post("/tokenize", {"model": "coder", "who": "free", "content": "x"})
    assert reply.status == 200
    await at.finish()


# --- reserved slots ---------------------------------------------------------------------------


async def test_reserved_slots_are_left_to_their_alias(stage: Any) -> None:
    at = await stage(slots=2, **roles(coder={}, vip={"reserved_slots": 1}))
    await at.run("c1")
    await at.queue("c2")
    await at.run("v1", alias="vip")
    assert at.gate.came == ["c1", "v1"]
    await at.queue("v2", alias="vip")
    at.gate.open(2)
    assert (await at.finish())[:2] == ["c1", "v1"]


async def test_an_alias_may_have_more_than_what_is_reserved_for_it(stage: Any) -> None:
    at = await stage(slots=2, **roles(coder={}, vip={"reserved_slots": 1}))
    await at.run("v1", "v2", alias="vip")
    await at.queue("c1")
    await at.finish()


# --- what a key may have ----------------------------------------------------------------------


async def test_a_key_waits_while_as_many_run_as_it_may_have(stage: Any) -> None:
    at = await stage(slots=4, **clients(ci={"max_concurrent": 2}, other={}))
    await at.run("c1", "c2", key="ci")
    await at.queue("c3", "c4", key="ci")
    await at.run("o1", "o2", key="other")
    assert at.waiting() == 2
    assert await at.finish() == ["c1", "c2", "o1", "o2", "c3", "c4"]


async def test_keys_without_a_bound_of_their_own_have_the_general_one(stage: Any) -> None:
    keys = clients(ci={"max_concurrent": 2}, other={})
    at = await stage(slots=4, **keys, limits={"max_concurrent_per_key": 1})
    await at.run("c1", "c2", key="ci")
    await at.run("o1", key="other")
    await at.queue("o2", key="other")
    await at.finish()


async def test_what_a_key_may_not_yet_run_counts_toward_the_bound_of_the_queue(
    stage: Any,
) -> None:
    keys = clients(ci={"max_concurrent": 1})
    at = await stage(slots=4, **keys, limits={"max_queue": 1})
    await at.run("c1", key="ci")
    await at.queue("c2", key="ci")
    reply = await at.gateway.chat("coder", "Authorization: Bearer ci-key", who="c3")
    assert (reply.status, reply.error["code"]) == (429, "queue_full")
    await at.finish()


async def test_a_key_beyond_its_requests_per_minute_is_told_when_to_come_again(
    stage: Any,
) -> None:
    keys = clients(ci={"requests_per_minute": 2}, other={})
    at = await stage(**keys)
    at.gate.open(3)
    await at.run("c1", "c2", key="ci")
    reply = await at.gateway.chat("coder", "Authorization: Bearer ci-key", who="c3")
    assert (reply.status, reply.error["code"]) == (429, "rate_limited")
    assert "auth.clients.ci.requests_per_minute" in reply.error["message"]
    assert 1 <= int(reply.fields["retry-after"]) <= 30
    assert "c3" not in at.gate.came
    await at.run("o1", key="other")


async def test_what_is_refused_for_other_reasons_costs_nothing_of_a_minutes_requests(
    stage: Any,
) -> None:
    at = await stage(**clients(ci={"requests_per_minute": 1}))
    for _ in range(3):
        reply = await at.gateway.chat("nobody", "Authorization: Bearer ci-key")
        assert reply.status == 404
    at.gate.open()
    await at.run("c1", key="ci")


async def test_the_bound_of_the_queue_is_one_for_each_alias_and_frees_with_who_is_served(
    stage: Any,
) -> None:
    at = await stage(limits={"max_queue": 1}, **roles(coder={}, critic={}))
    await at.run("first")
    await at.queue("second")
    await at.queue("third", alias="critic")
    for alias in ("coder", "critic"):
        reply = await at.gateway.chat(alias, who="too many")
        assert (reply.status, reply.error["code"]) == (429, "queue_full")
        assert reply.fields["retry-after"]
    at.gate.open()
    await at.has_come("second")
    await at.queue("fourth")
    assert await at.finish() == ["first", "second", "third", "fourth"]
