import pytest

from rolemesh.gateway.breakers import (
    FIRST_REST_S,
    LONGEST_REST_S,
    MAX_KNOWN,
    OPENS_AT,
    Breakers,
)


def opened(now: float = 0.0) -> Breakers[str]:
    """Return breakers of which that of `box` has just opened."""
    breakers: Breakers[str] = Breakers()
    for _ in range(OPENS_AT):
        breakers.failed("box", now)
    assert breakers.open == {"box"}
    return breakers


def test_a_few_failures_in_a_row_open_it() -> None:
    breakers: Breakers[str] = Breakers()
    assert [breakers.failed("box", 5.0) for _ in range(OPENS_AT - 1)] == [None] * (OPENS_AT - 1)
    assert breakers.open == set()
    assert breakers.failed("box", 5.0) == 5.0 + FIRST_REST_S
    assert breakers.open == {"box"}


def test_a_sign_of_life_begins_the_count_anew() -> None:
    breakers: Breakers[str] = Breakers()
    for _ in range(3 * OPENS_AT):
        breakers.failed("box", 0.0)
        breakers.answered("box")
    assert not breakers.open
    assert not breakers.known


def test_failures_of_others_do_not_count() -> None:
    breakers: Breakers[str] = Breakers()
    for number in range(3 * OPENS_AT):
        breakers.failed(f"box{number}", 0.0)
    assert not breakers.open


def test_nothing_passes_before_its_time_is_over() -> None:
    breakers = opened(now=10.0)
    assert not breakers.probe_over("box", 10.0 + FIRST_REST_S - 0.01)
    assert breakers.open == {"box"}
    assert breakers.probe_over("box", 10.0 + FIRST_REST_S)
    assert breakers.open == set()


def test_then_one_request_is_the_probe_and_the_next_may_follow_when_it_is_over() -> None:
    breakers = opened()
    breakers.probe_over("box", FIRST_REST_S)
    breakers.probing("box", FIRST_REST_S)
    assert breakers.open == {"box"}
    assert breakers.probe_over("box", FIRST_REST_S + 0.1)  # it left without an answer
    assert breakers.open == set()


def test_a_probe_that_answers_closes_it() -> None:
    breakers = opened()
    breakers.probe_over("box", FIRST_REST_S)
    breakers.probing("box", FIRST_REST_S)
    breakers.answered("box")
    assert not breakers.open
    assert not breakers.known


def test_each_failed_probe_doubles_the_rest_up_to_a_bound() -> None:
    breakers = opened()
    now, rests = FIRST_REST_S, []
    for _ in range(20):
        breakers.probing("box", now)
        until = breakers.failed("box", now)
        assert until is not None
        rests.append(until - now)
        now = until
    assert rests[:5] == [2.0, 4.0, 8.0, 16.0, 30.0]
    assert set(rests[4:]) == {LONGEST_REST_S}


def test_a_request_that_is_no_probe_changes_nothing() -> None:
    breakers: Breakers[str] = Breakers()
    breakers.failed("box", 0.0)
    breakers.probing("box", 1.0)
    breakers.probing("unknown", 1.0)
    assert breakers.open == set()


def test_what_is_known_is_bounded() -> None:
    breakers: Breakers[int] = Breakers()
    for key in range(MAX_KNOWN + 10):
        for _ in range(OPENS_AT):
            breakers.failed(key, 0.0)
    assert len(breakers.known) == len(breakers.open) == MAX_KNOWN
    assert 0 not in breakers.open


@pytest.mark.parametrize(
    ("failures", "told"),
    [
        (0, "closed"),
        (1, "closed: failed 1 times in a row"),
        (OPENS_AT, "open: failed 3 times in a row, tried again in 1 s"),
    ],
)
def test_people_are_told_how_it_stands(failures: int, told: str) -> None:
    breakers: Breakers[str] = Breakers()
    for _ in range(failures):
        breakers.failed("box", 0.0)
    assert breakers.described("box", 0.0) == told
