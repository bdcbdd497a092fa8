from collections.abc import Mapping

import pytest

from rolemesh.gateway.routing_table import Candidate, Warmth
from rolemesh.gateway.selection import CandidateKey, Load, Selection, select_candidates
from tests.gateway.builders import candidate, target

A, B, C = candidate("a"), candidate("b"), candidate("c")
DOWN = candidate("down", unusable="did not answer")


def select(
    *candidates: Candidate,
    in_flight: Mapping[CandidateKey, int] | None = None,
    full: frozenset[CandidateKey] = frozenset(),
    failed: frozenset[CandidateKey] = frozenset(),
    cost: int = 1,
    rotation: int = 0,
) -> Selection:
    load = Load(in_flight=in_flight or {}, full=full)
    return select_candidates(target(*candidates), load, cost=cost, failed=failed, rotation=rotation)


def names(candidates: tuple[Candidate, ...]) -> str:
    return " ".join(each.upstream.name for each in candidates)


def test_nothing_comes_of_nothing() -> None:
    assert select() == Selection(chosen=(), saturated=(), rejected=())


def test_whoever_cannot_answer_is_out_with_the_reason() -> None:
    selection = select(DOWN, A, B, failed=frozenset({A.key}))
    assert names(selection.chosen) == "b"
    assert [(each.candidate, each.why) for each in selection.rejected] == [
        (DOWN, "did not answer"),
        (A, "failed this request"),
    ]


@pytest.mark.parametrize(
    ("slots", "used", "cost", "takes"),
    [
        (1, 0, 1, True),
        (1, 1, 1, False),
        (4, 3, 1, True),
        (4, 3, 2, False),
        (4, 0, 9, True),  # alone it takes any request
        (4, 1, 4, False),
        (4, 4, 0, True),  # what costs nothing always fits
        (0, 0, 1, True),
        (None, 1000, 1, True),
    ],
)
def test_a_candidate_takes_what_its_slots_have_room_for(
    slots: int | None, used: int, cost: int, takes: bool
) -> None:
    only = candidate("a", slots=slots)
    selection = select(only, in_flight={only.key: used}, cost=cost)
    assert (selection.chosen, selection.saturated) == (((only,), ()) if takes else ((), (only,)))


def test_a_candidate_that_said_it_is_full_waits_whatever_our_counts_say() -> None:
    selection = select(A, B, full=frozenset({A.key}))
    assert (names(selection.chosen), names(selection.saturated)) == ("b", "a")


@pytest.mark.parametrize(
    ("candidates", "order"),
    [
        (
            (
                candidate("cold", warmth=Warmth.COLD),
                candidate("loading", warmth=Warmth.LOADING),
                candidate("ready"),
            ),
            "ready loading cold",
        ),
        ((candidate("second", preference=1), candidate("first")), "first second"),
        (
            (candidate("cold", warmth=Warmth.COLD), candidate("warm", preference=5)),
            "warm cold",
        ),
    ],
)
def test_warm_goes_before_cold_and_then_the_nodes_own_preference(
    candidates: tuple[Candidate, ...], order: str
) -> None:
    for rotation in range(4):
        assert names(select(*candidates, rotation=rotation).chosen) == order


def test_the_least_loaded_goes_first_by_its_share_of_slots() -> None:
    small, large, endless = (candidate(n, slots=s) for n, s in (("s", 4), ("l", 10), ("e", None)))
    used = {small.key: 2, large.key: 4, endless.key: 3}
    assert names(select(small, large, endless, in_flight=used).chosen) == "l s e"


def test_equals_take_turns() -> None:
    firsts = [select(A, B, C, rotation=number).chosen[0].upstream.name for number in range(6)]
    assert firsts == ["a", "b", "c", "a", "b", "c"]


def test_one_node_may_offer_two_models_and_each_counts_for_itself() -> None:
    first, second = candidate("a", "m1"), candidate("a", "m2", preference=1)
    selection = select(first, second, in_flight={first.key: 1})
    assert selection.chosen == (second,)
    assert selection.saturated == (first,)
