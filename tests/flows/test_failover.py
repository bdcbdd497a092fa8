"""Fallback chains, breakers, and requests that break whatever they are sent to."""

import asyncio
import logging
from typing import Any

import pytest

from rolemesh.gateway.breakers import OPENS_AT
from rolemesh.runtime.journal import FIELDS
from rolemesh.runtime.tasks import TaskScope
from tests.fakes.client import Received
from tests.fakes.upstream import (
    Conversation,
    Script,
    Upstream,
    answers,
    sends_and_closes,
)
from tests.gateway.conftest import StartGateway, StartUpstream
from tests.gateway.harness import Running
from tests.lab.poll import eventually
from tests.lab.processes import free_port

OK = answers(b'{"ok": true}')
BREAKS = sends_and_closes()
LOAD_IS_LATE = answers(
    b'{"error": {"code": "unavailable", "reason": "loading"}}', 503, fields=b"Retry-After: 5\r\n"
)
CRASHED = answers(b'{"error": {"code": "upstream_broke"}}', 502)


def nobody() -> str:
    return f"http://127.0.0.1:{free_port()}"


def proxy(upstream: Upstream | str, **members: Any) -> dict[str, Any]:
    url = upstream if isinstance(upstream, str) else upstream.url
    return {"type": "proxy", "proxy_url": url, **members}


def key_for(name: str, *roles: str) -> dict[str, Any]:
    return {"key": f"{name}-key", **({"roles": list(roles)} if roles else {})}


def sent_key(name: str) -> str:
    return f"Authorization: Bearer {name}-key"


# --- fallback ---------------------------------------------------------------------------------


async def chain(
    start_gateway: StartGateway, first: Any, second: Any, **configuration: Any
) -> Running:
    """Start a gateway whose alias `big` falls back to `small`, each with its own upstream."""
    models = {"big": proxy(first, fallback=["small"]), "small": proxy(second)}
    return await start_gateway(models=models, **configuration)


async def test_who_cannot_be_reached_leaves_the_request_to_its_fallback(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await chain(start_gateway, nobody(), await start_upstream(OK))
    reply = await gateway.chat("big")
    assert (reply.status, reply.fields["x-rolemesh-fallback"]) == (200, "small")
    assert reply.fields["x-rolemesh-model"] == "small"
    assert "x-rolemesh-fallback" not in (await gateway.chat("small")).fields


@pytest.mark.parametrize("script", [answers(b"{}", 500), BREAKS, LOAD_IS_LATE])
async def test_a_failure_is_followed_by_the_fallback(
    start_gateway: StartGateway, start_upstream: StartUpstream, script: Script
) -> None:
    gateway = await chain(start_gateway, await start_upstream(script), await start_upstream(OK))
    reply = await gateway.chat("big")
    assert (reply.status, reply.fields["x-rolemesh-fallback"]) == (200, "small")
    assert reply.fields["x-rolemesh-attempts"] == "2"


async def test_a_refused_request_is_not_tried_on_the_fallback(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    small = await start_upstream(OK)
    gateway = await chain(start_gateway, await start_upstream(answers(b"{}", 400)), small)
    assert (await gateway.chat("big")).status == 400
    assert small.conversations == []


async def test_an_alias_without_a_node_goes_to_its_fallback_as_that_is_asked_for(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    """Model and defaults are those of the fallback."""
    up = await start_upstream(OK)
    small = proxy(up, openai_model_name="theirs", defaults={"top_k": 3})
    coder = {"type": "discovered", "fallback": ["small"], "defaults": {"top_k": 9}}
    gateway = await start_gateway(models={"coder": coder, "small": small})
    reply = await gateway.chat("coder")
    assert (reply.status, reply.fields["x-rolemesh-model"]) == (200, "theirs")
    assert reply.fields["x-rolemesh-attempts"] == "1"
    assert up.conversations[0].json == {"model": "theirs", "top_k": 3}


async def test_the_chain_is_gone_through_in_order_and_skips_what_the_key_may_not_use(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    forbidden, allowed = await start_upstream(OK), await start_upstream(OK)
    gateway = await start_gateway(
        models={
            "big": proxy(nobody(), fallback=["dear", "dead", "cheap"]),
            "dear": proxy(forbidden),
            "dead": proxy(nobody()),
            "cheap": proxy(allowed),
        },
        auth={"clients": {"ci": key_for("ci", "big", "dead", "cheap"), "all": key_for("all")}},
    )
    reply = await gateway.chat("big", sent_key("ci"))
    assert reply.fields["x-rolemesh-fallback"] == "cheap"
    assert forbidden.conversations == []
    reply = await gateway.chat("big", sent_key("all"))
    assert reply.fields["x-rolemesh-fallback"] == "dear"


async def test_a_key_without_any_of_the_fallbacks_is_told_why_its_own_alias_fails(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    small = await start_upstream(OK)
    auth = {"clients": {"ci": key_for("ci", "big")}}
    gateway = await chain(start_gateway, nobody(), small, auth=auth)
    reply = await gateway.chat("big", sent_key("ci"))
    assert (reply.status, reply.error["code"]) == (503, "unavailable")
    assert reply.error["message"].startswith("big cannot answer now")
    assert small.conversations == []


async def test_an_unknown_alias_in_a_chain_is_passed_over(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    """With aliases from roles nobody can know beforehand."""
    up = await start_upstream(OK)
    gateway = await start_gateway(
        aliases={"from_roles": True},
        models={"big": {"type": "discovered", "fallback": ["ghost", "small"]}, "small": proxy(up)},
    )
    assert (await gateway.chat("big")).fields["x-rolemesh-fallback"] == "small"


async def test_over_the_whole_chain_a_request_is_sent_twice_at_most(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    ups = [await start_upstream(answers(b'{"no": %d}' % number, 500)) for number in range(3)]
    names = ["a", "b", "c"]
    models = {name: proxy(up) for name, up in zip(names, ups, strict=True)}
    models["a"]["fallback"] = ["b", "c"]
    gateway = await start_gateway(models=models)
    reply = await gateway.chat("a")
    assert (reply.status, reply.json) == (500, {"no": 1})
    assert reply.fields["x-rolemesh-attempts"] == "2"
    assert reply.fields["x-rolemesh-fallback"] == "b"
    assert [len(up.conversations) for up in ups] == [1, 1, 0]


async def test_the_record_names_the_alias_asked_for_and_who_answered(
    start_gateway: StartGateway, start_upstream: StartUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await chain(start_gateway, nobody(), up := await start_upstream(OK))
    await gateway.chat("big")

    def records() -> list[Any]:
        name = "rolemesh.gateway.inference"
        return [getattr(each, FIELDS) for each in caplog.records if each.name == name]

    (record,) = await eventually(records, what="it is recorded")
    assert (record["alias"], record["node"], record["status"]) == ("big", up.url, 200)


async def test_a_request_in_the_queue_of_its_fallback_returns_to_nothing_but_that(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    """It waits for the slots of whom it was sent on to."""
    release = asyncio.Event()

    async def held(conversation: Conversation) -> None:
        await release.wait()
        await OK(conversation)

    models = {
        "big": proxy(nobody(), fallback=["small"]),
        "small": proxy(await start_upstream(held), max_in_flight=1),
    }
    gateway = await start_gateway(models=models)
    async with TaskScope() as scope:
        first = scope.start(gateway.chat("small"), name="the one that has the slot")
        await eventually(lambda: gateway.in_flight() == 1, what="it is under way")
        second = scope.start(gateway.chat("big"), name="the one that waits")
        await eventually(lambda: gateway.queued("small") == 1, what="it waits for small")
        release.set()
        assert (await first).status == (await second).status == 200
    assert gateway.in_flight() == 0


# --- as often as it takes ---------------------------------------------------------------------


async def test_who_cannot_be_reached_costs_no_attempt(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    """However many there are, a request is still sent twice."""
    gateway = await start_gateway()
    for number in range(4):
        await gateway.register(f"dead{number}", nobody())
    cold = {"model_id": "m", "roles": ["coder"], "state": "cold"}
    await gateway.register("fails", await start_upstream(answers(b"{}", 500)), cold)
    await gateway.register("works", await start_upstream(OK), {**cold, "state": "failed"})
    reply = await gateway.chat()
    assert (reply.status, reply.fields["x-rolemesh-node"]) == (200, "works")


async def test_who_had_its_turn_waits_for_the_next_one_even_where_nobody_else_may(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    release = asyncio.Event()

    async def held(conversation: Conversation) -> None:
        await release.wait()
        await OK(conversation)

    one_slot = {"model_id": "m", "roles": ["coder"], "slots": 1}
    gateway = await start_gateway(limits={"max_queue": 0})
    await gateway.register("busy", await start_upstream(held), one_slot)
    async with TaskScope() as scope:
        first = scope.start(gateway.chat(), name="the one that has the slot")
        await eventually(lambda: gateway.in_flight() == 1, what="it is under way")
        await gateway.register("breaks", await start_upstream(BREAKS), one_slot)
        second = scope.start(gateway.chat(), name="the one that breaks")
        await eventually(lambda: gateway.queued("coder") == 1, what="it waits for the other node")
        release.set()
        assert (await first).status == (await second).status == 200


# --- breakers ---------------------------------------------------------------------------------


NODE = {"model_id": "m", "roles": ["coder"], "slots": 4}
COLD = {**NODE, "state": "cold"}


async def preferred_and_other(
    gateway: Running, preferred: Upstream | str, other: Upstream | str
) -> None:
    """Register two nodes; the second is asked only after the first, because it is cold."""
    await gateway.register("preferred", preferred, NODE)
    await gateway.register("other", other, COLD)


async def asked(gateway: Running, times: int) -> list[Received]:
    """Send so many different requests, one after another."""
    return [await gateway.chat("coder", nonce=number) for number in range(times)]


async def test_a_candidate_that_fails_again_and_again_is_left_alone_and_then_probed_once(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    release = asyncio.Event()

    async def answers_late(conversation: Conversation) -> None:
        await release.wait()
        await OK(conversation)

    up = await start_upstream(*[LOAD_IS_LATE] * OPENS_AT, answers_late)
    gateway = await start_gateway()
    await preferred_and_other(gateway, up, await start_upstream(OK))

    for reply in await asked(gateway, 2 * OPENS_AT):
        assert reply.fields["x-rolemesh-node"] == "other"
    assert len(up.conversations) == OPENS_AT

    breakers = gateway.gateway._admission.breakers
    await eventually(lambda: not breakers.open, what="its time is over")
    async with TaskScope() as scope:
        probe = scope.start(gateway.chat("coder"), name="the probe")
        await eventually(lambda: len(up.conversations) == OPENS_AT + 1, what="it is probed")
        for reply in await asked(gateway, 3):
            assert reply.fields["x-rolemesh-node"] == "other"
        release.set()
        assert (await probe).fields["x-rolemesh-node"] == "preferred"
    assert not breakers.known
    assert (await gateway.chat("coder")).fields["x-rolemesh-node"] == "preferred"


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429])
async def test_what_an_upstream_refuses_is_no_failure_of_the_way_there(
    start_gateway: StartGateway, start_upstream: StartUpstream, status: int
) -> None:
    up = await start_upstream(answers(b"{}", status))
    gateway = await start_gateway()
    await preferred_and_other(gateway, up, await start_upstream(OK))
    assert {reply.status for reply in await asked(gateway, 2 * OPENS_AT)} == {status}
    assert not gateway.gateway._admission.breakers.known


async def test_a_failure_of_its_own_is_a_sign_of_life(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    late, fails = LOAD_IS_LATE, answers(b"{}", 500)
    up = await start_upstream(late, late, fails, late, late, fails, OK)
    gateway = await start_gateway()
    await preferred_and_other(gateway, up, await start_upstream(OK))
    replies = await asked(gateway, 7)
    assert [reply.fields["x-rolemesh-node"] for reply in replies] == ["other"] * 6 + ["preferred"]


async def test_a_full_node_is_no_failure(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    busy = answers(b'{"error": {"code": "slots_busy"}}', 503)
    gateway = await start_gateway()
    await gateway.register("preferred", await start_upstream(busy), NODE)
    # Not cold: a load would be worth it only after a while.
    await gateway.register("other", await start_upstream(OK), {**NODE, "state": "loading"})
    await asked(gateway, 2 * OPENS_AT)
    assert not gateway.gateway._admission.breakers.known


async def test_with_nobody_else_a_candidate_is_asked_whatever_its_breaker_says(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(*[answers(b"{}", 503)] * 2 * OPENS_AT, OK)
    gateway = await start_gateway()
    await gateway.register("box", up)
    statuses = [reply.status for reply in await asked(gateway, 2 * OPENS_AT + 1)]
    assert statuses == [503] * 2 * OPENS_AT + [200]
    assert not gateway.gateway._admission.breakers.known


async def test_who_waits_for_a_slot_is_not_sent_to_one_whose_breaker_is_open(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    release = asyncio.Event()

    async def held(conversation: Conversation) -> None:
        await release.wait()
        await OK(conversation)

    broken = await start_upstream(OK)
    gateway = await start_gateway()
    await gateway.register("broken", broken, NODE)
    await gateway.register("healthy", await start_upstream(held), ONE_COLD)
    for _ in range(10):  # so often that it stays open for the length of this test
        breakers = gateway.gateway._admission.breakers
        breakers.failed(("broken", "m", None), asyncio.get_running_loop().time())
    async with TaskScope() as scope:
        asking = [scope.start(gateway.chat("coder"), name=f"request {i}") for i in range(2)]
        await eventually(lambda: gateway.queued("coder") == 1, what="one waits for the healthy one")
        release.set()
        for each in asking:
            assert (await each).fields["x-rolemesh-node"] == "healthy"
    assert broken.conversations == []


ONE_COLD = {**COLD, "slots": 1}


# --- requests that break their upstreams -------------------------------------------------------


POISON = {"prompt": "poison"}


async def test_a_body_that_has_broken_two_is_sent_nowhere_for_a_while(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway()
    ups = [await start_upstream(breaks_on_poison(CRASHED)) for _ in range(2)]
    for number, up in enumerate(ups):
        await gateway.register(f"n{number}", up)
    for _ in range(2):
        reply = await gateway.chat("coder", **POISON)
        assert (reply.status, reply.error["code"]) == (502, "request_crashes_upstream")
        assert [len(up.conversations) for up in ups] == [1, 1]
    assert (await gateway.chat("coder", prompt="harmless")).status == 200
    assert gateway.in_flight() == 0


async def test_a_body_that_broke_one_upstream_twice_is_refused_too(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(breaks_on_poison(BREAKS))
    gateway = await start_gateway(models={"planner": proxy(up)})
    for _ in range(2):
        reply = await gateway.chat("planner", **POISON)
        assert (reply.status, reply.error["code"]) == (502, "request_crashes_upstream")
    assert len(up.conversations) == 2
    assert (await gateway.chat("planner", prompt="harmless")).status == 200


async def test_a_break_that_a_second_attempt_survives_is_an_accident(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(BREAKS, OK)
    gateway = await start_gateway(models={"planner": proxy(up)})
    assert (await gateway.chat("planner", **POISON)).status == 200
    assert (await gateway.chat("planner", **POISON)).status == 200


async def test_one_crash_that_takes_several_like_requests_with_it_is_one_crash(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    """Whoever asks the same at the same time has not killed anything together."""
    crash = asyncio.Event()

    async def dies_with_all(conversation: Conversation) -> None:
        await crash.wait()
        await CRASHED(conversation)

    up, other = await start_upstream(dies_with_all), await start_upstream(OK)
    gateway = await start_gateway()
    await preferred_and_other(gateway, up, other)
    async with TaskScope() as scope:
        asking = [
            scope.start(gateway.chat("coder", prompt="same"), name=f"request {number}")
            for number in range(4)
        ]
        await eventually(lambda: len(up.conversations) == 4, what="all four are there")
        crash.set()
        replies = [await each for each in asking]
    assert [reply.status for reply in replies] == [200] * 4
    assert {reply.fields["x-rolemesh-node"] for reply in replies} == {"other"}


def breaks_on_poison(how: Script) -> Script:
    """Answer requests, but those with the word poison as told."""

    async def script(conversation: Conversation) -> None:
        await (how if b"poison" in conversation.body else OK)(conversation)

    return script
