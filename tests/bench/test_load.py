"""The load generator's options and results."""

from typing import Any

from tests.bench.load import Load, LoadResult


def result(**figures: Any) -> LoadResult:
    return LoadResult(
        raw={"started": 9, "errors": 0, "requests": 8, "events": 0, "cpu_s": [], **figures}
    )


def test_every_field_of_a_load_is_an_option() -> None:
    load = Load(connections=3, requests=7, events=5, leave="head", stuck=True)
    options = load.options()
    assert options[options.index("-c") + 1] == "3"
    assert options[options.index("-n") + 1] == "7"
    assert options[options.index("-s") + 1] == "5"
    assert options[-3:] == ["-L", "head", "-S"]


def test_cpu_time_is_that_of_all_processes() -> None:
    assert result(cpu_s=[0.5, 0.3]).cpu_us_per_request == 100_000
    assert result(cpu_s=[0.5, 0.3], events=16).cpu_us_per_event == 50_000


def test_nothing_was_answered_is_no_division_by_zero() -> None:
    assert result(cpu_s=[0.5], requests=0).cpu_us_per_request == 500_000


def test_a_failure_says_how_many_and_which_was_the_first() -> None:
    failed = result(errors=2, first_error="not answered with 200 (status 503)")
    assert failed.error == "2 of 9 failed, first: not answered with 200 (status 503)"
    assert result().error == ""
