from collections.abc import Mapping

import pytest

from rolemesh.gateway.routing_table import Candidate, CandidateKey, Warmth
from rolemesh.gateway.selection import COMPARED, Load, may_wait, select_candidate
from rolemesh.names import Alias
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
    spills: bool = False,
) -> str:
    """Return the name of the one selected, "" for none."""
    load = Load(in_flight=in_flight or {}, by_alias={}, full=full)
    chosen = select_candidate(
        target(*candidates), load, cost=cost, failed=failed, rotation=rotation, spills=spills
    )
    return chosen.upstream.name if chosen is not None else ""


def test_nothing_comes_of_nothing() -> None:
    assert select() == ""
    assert not may_wait(target(), failed=frozenset())


def test_whoever_cannot_answer_or_has_failed_is_out() -> None:
    assert select(DOWN, A, B, failed=frozenset({A.key})) == "b"
    assert may_wait(target(DOWN, A, B), failed=frozenset({A.key}))
    assert not may_wait(target(DOWN, A), failed=frozenset({A.key}))


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
    assert select(only, in_flight={only.key: used}, cost=cost) == ("a" if takes else "")
    assert may_wait(target(only), failed=frozenset())


def test_a_candidate_that_said_it_is_full_waits_whatever_our_counts_say() -> None:
    assert select(A, B, full=frozenset({A.key})) == "b"
    assert select(A, full=frozenset({A.key})) == ""


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
        failed: frozenset[CandidateKey] = frozenset()
        for name in order.split():
            assert select(*candidates, failed=failed, rotation=rotation) == name
            failed |= {each.key for each in candidates if each.upstream.name == name}


def test_the_least_loaded_goes_first_by_its_share_of_slots() -> None:
    small, large, endless = (candidate(n, slots=s) for n, s in (("s", 4), ("l", 10), ("e", None)))
    used = {small.key: 2, large.key: 4, endless.key: 3}
    for rotation in range(3):
        assert select(small, large, endless, in_flight=used, rotation=rotation) == "l"


def test_equals_take_turns() -> None:
    assert [select(A, B, C, rotation=number) for number in range(6)] == list("abcabc")


def test_in_a_large_mesh_only_so_many_are_compared_and_all_have_their_turn() -> None:
    many = [candidate(f"n{number}", slots=8) for number in range(4 * COMPARED)]
    used = {each.key: 2 for each in many} | {many[COMPARED].key: 1}
    assert select(*many, in_flight=used, rotation=1) == f"n{COMPARED}"
    assert select(*many, in_flight=used, rotation=COMPARED + 1) == f"n{COMPARED + 1}"
    busy = {each.key: 8 for each in many[:-1]}
    assert select(*many, in_flight=busy) == many[-1].upstream.name


def test_one_node_may_offer_two_models_and_each_counts_for_itself() -> None:
    first, second = candidate("a", "m1"), candidate("a", "m2", preference=1)
    load = Load(by_alias={}, in_flight={first.key: 1})
    chosen = select_candidate(target(first, second), load, cost=1, failed=frozenset(), rotation=0)
    assert chosen is second


@pytest.mark.parametrize(
    ("reserved", "used", "cost", "takes"),
    [
        (1, 0, 9, True),  # alone it takes any request, reservation or not
        (1, 2, 1, True),
        (1, 3, 1, False),
        (4, 0, 1, False),
    ],
)
def test_slots_that_are_reserved_for_another_alias_are_left_free(
    reserved: int, used: int, cost: int, takes: bool
) -> None:
    only = candidate("a", slots=4, reserved=((Alias("planner"), reserved),))
    assert select(only, in_flight={only.counted_as: used}, cost=cost) == ("a" if takes else "")


# --- one load -------------------------------------------------------------------------------

COLD_1, COLD_2 = (candidate(name, warmth=Warmth.COLD, slots=2) for name in ("x", "y"))
READY = candidate("ready", slots=2)
LOADING = candidate("loading", warmth=Warmth.LOADING, slots=2)


@pytest.mark.parametrize("rotation", range(3))
def test_who_wants_a_cold_model_joins_the_load_that_another_began(rotation: int) -> None:
    assert select(COLD_1, COLD_2, in_flight={COLD_2.key: 1}, rotation=rotation) == "y"
    assert select(COLD_1, COLD_2, in_flight={COLD_2.key: 2}, rotation=rotation) == "", "it waits"


def test_a_model_that_loads_is_not_loaded_elsewhere_however_long_that_takes() -> None:
    assert select(LOADING, COLD_1, in_flight={LOADING.key: 2}, spills=True) == ""


def test_one_more_is_loaded_for_who_has_waited_long_for_busy_ones() -> None:
    busy = {READY.key: 2}
    assert select(READY, COLD_1, COLD_2, in_flight=busy) == ""
    assert select(READY, COLD_1, COLD_2, in_flight=busy, spills=True) == "x"
    assert select(READY, COLD_1, in_flight={READY.key: 1}, spills=True) == "ready"
    # One at a time.
    assert select(READY, COLD_1, COLD_2, in_flight={**busy, COLD_1.key: 2}, spills=True) == ""


def test_one_that_failed_keeps_nobody_from_a_load() -> None:
    assert select(READY, COLD_1, failed=frozenset({READY.key})) == "x"


def test_one_that_said_it_is_full_is_waited_for_if_it_has_the_model() -> None:
    assert select(READY, COLD_1, full=frozenset({READY.key})) == ""
    assert select(READY, COLD_1, full=frozenset({READY.key}), spills=True) == "x"
    assert select(COLD_1, COLD_2, full=frozenset({COLD_1.key}), in_flight={COLD_1.key: 1}) == "y"


def test_where_there_is_room_comes_before_where_others_are_busy() -> None:
    crowded = candidate("crowded", warmth=Warmth.CROWDED, slots=2)
    assert [select(crowded, COLD_1, rotation=rotation) for rotation in range(2)] == ["x", "x"]
    assert select(crowded) == "crowded"
    assert select(crowded, COLD_1, in_flight={COLD_1.key: 2}) == "", "one load"
