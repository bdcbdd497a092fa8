from collections.abc import Iterator

import pytest

from tests.lab.poll import StillNot, eventually, eventually_sync


def third_time(answers: Iterator[int]) -> bool:
    return next(answers) == 2


async def test_a_condition_is_asked_until_it_is_true() -> None:
    answers = iter(range(5))
    assert await eventually(lambda: third_time(answers), what="three")
    assert next(answers) == 3


async def test_a_condition_may_be_a_coroutine_and_its_result_is_returned() -> None:
    async def answer() -> str:
        return "yes"

    assert await eventually(answer, what="an answer") == "yes"


async def test_the_failure_says_what_did_not_come_true() -> None:
    with pytest.raises(StillNot, match=r"after 0\.01 s still not: it rains \(last result: 0\)"):
        await eventually(lambda: 0, what="it rains", deadline_s=0.01)


def test_the_blocking_form_does_the_same() -> None:
    answers = iter(range(5))
    assert eventually_sync(lambda: third_time(answers), what="three")
    with pytest.raises(StillNot, match="still not: it rains"):
        eventually_sync(lambda: False, what="it rains", deadline_s=0.01)
