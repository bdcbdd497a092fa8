"""One timer for many, on a clock of the event loop's own."""

import asyncio
from math import inf

from rolemesh.relay.deadlines import Deadlines
from tests.lab.poll import eventually


class Wait:
    """Something that waits; `ended` says when it was told that its time is over."""

    def __init__(self, due: float, then: float | None = None) -> None:
        self.due = due
        self.ended: list[float] = []
        self._then = then

    def check_time(self, now: float) -> None:
        self.ended.append(now)
        self.due, self._then = (inf if self._then is None else self._then), None


async def test_each_is_told_when_its_time_is_over_and_not_before() -> None:
    loop = asyncio.get_running_loop()
    deadlines: Deadlines[Wait] = Deadlines(loop)
    start = loop.time()
    waits = [Wait(start + delay) for delay in (0.15, 0.05, 0.1)]
    for wait in waits:
        deadlines.add(wait)
    await eventually(lambda: all(wait.ended for wait in waits), what="all are over")
    for wait in waits:
        (ended,) = wait.ended
        assert ended >= start + 0.05
    assert waits[1].ended < waits[2].ended < waits[0].ended


async def test_one_may_wait_on_and_is_told_again() -> None:
    loop = asyncio.get_running_loop()
    deadlines: Deadlines[Wait] = Deadlines(loop)
    wait = Wait(loop.time() + 0.02, then=loop.time() + 0.06)
    deadlines.add(wait)
    await eventually(lambda: len(wait.ended) == 2, what="told twice")


async def test_a_time_that_comes_nearer_counts_once_it_is_added_again() -> None:
    loop = asyncio.get_running_loop()
    deadlines: Deadlines[Wait] = Deadlines(loop)
    wait = Wait(loop.time() + 3600)
    deadlines.add(wait)
    wait.due = loop.time() + 0.02
    deadlines.add(wait)
    await eventually(lambda: wait.ended, what="told")


async def test_what_is_discarded_is_never_told() -> None:
    loop = asyncio.get_running_loop()
    deadlines: Deadlines[Wait] = Deadlines(loop)
    gone, stays = Wait(loop.time() + 0.02), Wait(loop.time() + 0.04)
    deadlines.add(gone)
    deadlines.add(stays)
    deadlines.discard(gone)
    await eventually(lambda: stays.ended, what="the other is over")
    assert not gone.ended


async def test_what_waits_for_ever_arms_no_timer() -> None:
    deadlines: Deadlines[Wait] = Deadlines(asyncio.get_running_loop())
    deadlines.add(Wait(inf))
    assert deadlines.check_at == inf
