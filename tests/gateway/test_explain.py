"""What explain says is what selection decides."""

from types import MappingProxyType
from typing import Any

from rolemesh.config.settings import Timeouts
from rolemesh.gateway.explain import explain
from rolemesh.gateway.routing_table import Candidate, RoutingTable, Target, Warmth
from rolemesh.gateway.selection import Load, select_candidate
from rolemesh.names import Alias, Role
from tests.gateway.builders import candidate

IDLE = Load(in_flight={}, by_alias={})


def target(alias: str, *candidates: Candidate, fallback: tuple[str, ...] = ()) -> Target:
    return Target(
        alias=Alias(alias),
        role=Role(alias),
        candidates=candidates,
        defaults={},
        timeouts=Timeouts(),
        absent=f"no node announces the role {alias}",
        fallback=tuple(map(Alias, fallback)),
    )


def told(
    *targets: Target,
    load: Load = IDLE,
    may_use: frozenset[Alias] | None = None,
    held_back: str = "",
) -> dict[str, Any]:
    table = RoutingTable(
        targets=MappingProxyType({each.alias: each for each in targets}), default_model=None
    )
    return explain(
        targets[0].alias,
        table,
        load,
        may_use=may_use,
        held_back=held_back,
        breaker=lambda key: f"of {key[0]}",
    )


def whys(tree: dict[str, Any]) -> dict[str, str]:
    return {each["upstream"]: each["why"] for each in tree["candidates"]}


def test_every_candidate_is_there_chosen_or_not_and_why() -> None:
    warm, cold = candidate("warm", slots=2), candidate("cold", warmth=Warmth.COLD)
    gone = candidate("gone", unusable="stale: not heard for 47 s")
    coder = target("coder", gone, cold, warm)
    load = Load(in_flight={warm.counted_as: 1}, by_alias={})
    tree = told(coder, load=load)
    assert (tree["usable"], tree["reason"]) == (True, "")
    assert tree["chosen"] == {"upstream": "warm", "model": "m", "instance": None}
    assert select_candidate(coder, load, cost=1, failed=frozenset(), rotation=0) is warm
    chosen = tree["candidates"][0]
    assert chosen == {
        "upstream": "warm",
        "model": "m",
        "instance": None,
        "alias": "coder",
        "chosen": True,
        "why": "ready, 1 of 2 slots in use",
        "warmth": "ready",
        "slots": 2,
        "in_flight": 1,
        "breaker": "of warm",
    }
    assert whys(tree)["cold"] == "not loaded: further from its first token"
    assert whys(tree)["gone"] == "stale: not heard for 47 s"


def test_an_alias_that_cannot_answer_says_why() -> None:
    tree = told(target("coder"))
    assert (tree["usable"], tree["chosen"], tree["candidates"]) == (False, None, [])
    assert tree["reason"] == "no node announces the role coder"


def test_a_fallback_is_chosen_only_where_nobody_is_left() -> None:
    spare, busy = target("spare", candidate("other")), candidate("box")
    alone = told(target("coder", fallback=("spare", "none")), spare)
    assert alone["chosen"] == {"upstream": "other", "model": "m", "instance": None}
    assert [each["alias"] for each in alone["candidates"]] == ["spare"]
    # Whoever only has to wait is not fallen back from.
    load = Load(in_flight={busy.counted_as: 1}, by_alias={})
    waiting = told(target("coder", busy, fallback=("spare",)), spare, load=load)
    assert waiting["chosen"] is None
    assert whys(waiting) == {
        "box": "1 of 1 slots in use",
        "other": "only tried where coder has nobody left",
    }


def test_a_key_that_runs_all_it_may_waits_whatever_is_free() -> None:
    tree = told(target("coder", candidate("box")), held_back="it has to wait")
    assert (tree["usable"], tree["chosen"]) == (True, None)
    assert whys(tree) == {"box": "it has to wait"}


def test_a_key_is_told_what_it_may_not_use() -> None:
    coder = target("coder", candidate("box"), fallback=("spare",))
    spare = target("spare", candidate("other"))
    tree = told(coder, spare, may_use=frozenset({Alias("spare")}))
    assert (tree["usable"], tree["chosen"]) == (False, None)
    assert tree["reason"] == "the key may not use coder"
    assert set(whys(tree).values()) == {"the key may not use coder"}
    lost = target("coder", fallback=("spare",))
    tree = told(lost, spare, may_use=frozenset({Alias("coder")}))
    assert whys(tree) == {"other": "the key may not use spare"}
