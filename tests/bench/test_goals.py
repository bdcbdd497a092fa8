"""Ratios, verdicts and rows."""

import pytest

from tests.bench.goals import ROWS, Goal, added, compared, plain, ratios, shown
from tests.bench.samples import Samples


def samples_of(**targets: list[float]) -> Samples:
    samples = Samples()
    for target, figures in targets.items():
        name = target.replace("_newest", "@newest")
        for figure in figures:
            samples.add(name, "request", {"cpu": figure})
    return samples


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(1.4, "moonshot"), (1.41, "target"), (1.9, "target"), (2.5, "must"), (2.51, "MISSED")],
)
def test_a_verdict_is_the_highest_goal_that_is_met(value: float, verdict: str) -> None:
    assert Goal(2.5, 1.9, 1.4).verdict(value) == verdict


@pytest.mark.parametrize(
    ("value", "verdict"), [(1.4, "moonshot"), (1.1, "target"), (0.8, "must"), (0.79, "MISSED")]
)
def test_more_may_be_better(value: float, verdict: str) -> None:
    assert Goal(0.8, 1.1, 1.4, at_least=True).verdict(value) == verdict


def test_ratios_are_taken_within_a_round() -> None:
    assert ratios([20, 60], [10, 20]) == [2, 3]


def test_a_round_that_only_one_has_gives_no_ratio() -> None:
    assert ratios([20, 60], [10]) == [2]
    assert ratios([20], [0]) == []


def test_added_latency_is_what_lies_above_the_direct_way() -> None:
    assert added([50, 35], [20, 25], [10, 15]) == [4, 2]


def test_a_rival_that_adds_nothing_gives_no_ratio() -> None:
    assert added([50], [10], [10]) == []


def test_a_comparison_shows_both_values_and_judges_the_ratio() -> None:
    samples = samples_of(gateway_newest=[30, 50, 40], nginx=[10, 10, 10])
    text, judged = compared("request", "cpu", "gateway", "nginx", "us")(samples, "@newest")
    assert text == "40 to 10 us"
    assert judged == [3, 5, 4]


def test_two_hops_are_compared_with_twice_the_other() -> None:
    samples = samples_of(chain_newest=[60], nginx=[10])
    _, judged = compared("request", "cpu", "chain", "nginx", "us", share=2)(samples, "@newest")
    assert judged == [3]


def test_what_failed_in_a_round_has_no_figure() -> None:
    samples = samples_of(gateway_newest=[30], nginx=[10])
    samples.add("gateway@newest", "request", {"error": "3 of 9 failed"})
    assert compared("request", "cpu", "gateway", "nginx", "us")(samples, "@newest") == ("", ())
    assert samples.errors == ["gateway@newest, request: 3 of 9 failed"]


def test_a_plain_figure_is_judged_by_itself() -> None:
    text, judged = plain("gateway", "request", "cpu", "KiB")(
        samples_of(gateway_newest=[3, 5, 4]), "@newest"
    )
    assert (text, judged) == ("4 KiB", [3, 5, 4])


def test_rows_that_were_not_measured_have_no_outcome() -> None:
    assert [row.outcome(Samples(), "newest") for row in ROWS] == [None] * len(ROWS)


def test_no_two_rows_have_one_number() -> None:
    assert len({row.number for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,234"), (123.4, "123"), (12.34, "12.3"), (0.1234, "0.123")]
)
def test_figures_have_the_digits_they_are_good_for(value: float, text: str) -> None:
    assert shown(value) == text
