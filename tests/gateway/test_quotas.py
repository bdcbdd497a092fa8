import pytest

from rolemesh.errors import RateLimited
from rolemesh.gateway.quotas import RequestRates
from rolemesh.runtime.keys import Principal


def key(name: str = "ci", per_minute: int | None = 6) -> Principal:
    return Principal(name=name, requests_per_minute=per_minute)


def taken(rates: RequestRates, principal: Principal, now: float, *, tries: int = 100) -> int:
    """Return how many requests are let through at one time."""
    for count in range(tries):
        try:
            rates.take(principal, now)
        except RateLimited:
            return count
    return tries


def test_a_minutes_requests_may_come_at_once_and_no_more() -> None:
    assert taken(RequestRates(), key(), now=1000.0) == 6


def test_they_come_back_one_after_another_over_the_minute() -> None:
    rates = RequestRates()
    taken(rates, key(), now=0.0)
    assert [taken(rates, key(), now=float(now)) for now in (9, 10, 19, 40)] == [0, 1, 0, 3]


def test_a_long_silence_saves_up_no_more_than_a_minute() -> None:
    rates = RequestRates()
    taken(rates, key(), now=0.0)
    assert taken(rates, key(), now=100_000.0) == 6


def test_the_refusal_names_key_and_limit_and_says_when_the_next_may_come() -> None:
    rates = RequestRates()
    taken(rates, key(), now=0.0)
    with pytest.raises(
        RateLimited, match=r"ci .* 6 .*auth\.clients\.ci\.requests_per_minute"
    ) as it:
        rates.take(key(), 4.0)
    assert it.value.retry_after_s == pytest.approx(6.0)


def test_keys_have_what_is_theirs() -> None:
    rates = RequestRates()
    taken(rates, key("a"), now=0.0)
    assert taken(rates, key("b", 2), now=0.0) == 2
    assert taken(rates, key("a"), now=0.0) == 0


def test_without_a_bound_nothing_is_counted() -> None:
    assert taken(RequestRates(), key(per_minute=None), now=0.0) == 100


def test_a_new_bound_counts_from_the_next_request() -> None:
    rates = RequestRates()
    rates.take(key(per_minute=100), 0.0)
    assert taken(rates, key(per_minute=2), now=0.0) == 2
    assert taken(rates, key(per_minute=60), now=1.0) == 1
