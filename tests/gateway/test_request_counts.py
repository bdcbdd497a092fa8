from typing import Any

from rolemesh.gateway import request_counts
from rolemesh.gateway.request_counts import (
    BOUNDS_S,
    NOBODY,
    OTHERS,
    Histogram,
    RequestCounts,
    status_class,
)
from rolemesh.runtime.request_history import Flat
from rolemesh.runtime.request_log import labels


def request(status: int = 200, attempts: int | None = 1, **changes: Any) -> Flat:
    times = {"queue": 0.0, "first": 20.0, "total": 700.0}
    named: dict[str, str | None] = {"client": "ci", "alias": "coder", "node": "box"}
    named["fallback"] = None
    times.update({key: value for key, value in changes.items() if key in times})
    named.update({key: value for key, value in changes.items() if key in named})
    of = labels(str(named), **named)
    return [of, "req", status, "done", 1.0, attempts, *times.values(), None]


def counted(*requests: Flat) -> RequestCounts:
    counts = RequestCounts()
    counts.count([element for each in requests for element in each])
    return counts


def in_bucket(histogram: Histogram) -> dict[float, int]:
    bounds = (*BOUNDS_S, float("inf"))
    return {bound: n for bound, n in zip(bounds, histogram.buckets, strict=True) if n}


def test_the_class_of_a_status() -> None:
    classes = [status_class(status) for status in (200, 404, 499, 503)]
    assert classes == ["2xx", "4xx", "499", "5xx"]


def test_requests_are_counted_by_alias_node_and_class() -> None:
    counts = counted(
        request(),
        request(node="other"),
        request(503, node="other"),
        request(504, node="other"),
        request(alias="poet", client="me"),
        request(401, None, alias=None, node=None),
    )
    assert counts.requests == {
        ("coder", "box", "2xx"): 1,
        ("coder", "other", "2xx"): 1,
        ("coder", "other", "5xx"): 2,
        ("poet", "box", "2xx"): 1,
        (NOBODY, NOBODY, "4xx"): 1,
    }
    assert counts.clients == {"ci": 5, "me": 1}


def test_attempts_retries_and_refusals() -> None:
    counts = counted(request(attempts=3), request(), request(429, 0), request(499, 0))
    assert (counts.aliases["coder"].attempts, counts.aliases["coder"].retries) == (4, 2)
    assert counts.refused == {429: 1}  # who left was not refused


def test_a_request_for_which_a_fallback_was_asked_is_counted_for_its_own_alias() -> None:
    counts = counted(request(fallback="spare"), request())
    assert {alias: each.fallbacks for alias, each in counts.aliases.items()} == {"coder": 1}


def test_times_fall_into_their_buckets_few_or_many() -> None:
    few = [request(queue=0.0), request(queue=1.0, first=None), request(total=1e9)]
    for times in (1, 100):
        coder = counted(*few * times).aliases["coder"]
        assert in_bucket(coder.queue) == {0.001: 3 * times}  # 1 ms is within 1 ms
        assert in_bucket(coder.first_byte) == {0.025: 2 * times}
        assert in_bucket(coder.total) == {1.0: 2 * times, float("inf"): times}
        assert coder.first_byte.sum_ms == 40.0 * times


def test_several_aliases_at_once_do_not_mix() -> None:
    counts = counted(*[request(alias=f"a{number % 3}", total=number) for number in range(300)])
    assert {alias: sum(each.total.buckets) for alias, each in counts.aliases.items()} == {
        "a0": 100,
        "a1": 100,
        "a2": 100,
    }


def test_names_are_told_apart_up_to_a_bound() -> None:
    counts = RequestCounts()
    for number in range(request_counts.MAX_NAMES + 10):
        counts.count(request(alias=f"alias-{number}", node=f"node-{number}"))
    counts.count(request(alias="alias-0", node="node-0"))
    assert counts.requests["alias-0", "node-0", "2xx"] == 2
    assert counts.requests[OTHERS, OTHERS, "2xx"] == 10
    assert len(counts.aliases) == request_counts.MAX_NAMES + 1
