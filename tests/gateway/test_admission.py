import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from rolemesh.config.settings import Limits, Priority
from rolemesh.errors import QueueFull, QueueTimeout, Unavailable
from rolemesh.gateway import admission as admission_module
from rolemesh.gateway.admission import Admission, Claim
from rolemesh.gateway.queue_order import AGE_S
from rolemesh.gateway.routing_table import Candidate, CandidateKey
from rolemesh.gateway.selection import Load, select_candidate, waited_for
from rolemesh.names import Alias
from rolemesh.runtime.keys import ANYONE, Principal
from rolemesh.runtime.tasks import TaskScope
from tests.gateway.builders import candidate, target
from tests.lab.poll import eventually

CODER, CRITIC = Alias("coder"), Alias("critic")
BOX = candidate("box", slots=1)
TWO_SLOTS = candidate("box", slots=2)


@pytest.fixture
async def scope() -> AsyncIterator[TaskScope]:
    async with TaskScope() as scope:
        yield scope


class Waiters:
    """Requests that ask for a slot; each one's result holds it until closed."""

    def __init__(self, admission: Admission, scope: TaskScope) -> None:
        self.admission = admission
        self.scope = scope
        self.served: list[str] = []

    def start(self, name: str, *, only: Candidate = BOX, **wish: Any) -> asyncio.Task[ExitStack]:
        async def obtain() -> ExitStack:
            held = ExitStack()
            made = claim(**wish)
            await choose(self.admission, only, made=made)
            held.callback(self.admission.release, made)
            self.served.append(name)
            return held

        return self.scope.start(obtain(), name=name)


def claim(
    alias: Alias = CODER,
    *,
    cost: int = 1,
    principal: Principal = ANYONE,
    priority: Priority = Priority.DEFAULT,
) -> Claim:
    return Claim(alias, principal, priority, cost, asyncio.get_running_loop().time())


@contextmanager
def lease(admission: Admission, candidate: Candidate, cost: int) -> Iterator[None]:
    """Hold slots for the length of the block."""
    made = claim(cost=cost)
    admission.acquire(made, candidate)
    try:
        yield
    finally:
        admission.release(made)


async def choose(
    admission: Admission,
    only: Candidate = BOX,
    *,
    made: Claim | None = None,
    within_s: float = 60.0,
    waited_s: float = 0.0,
    had_its_turn: bool = False,
) -> Candidate:
    """Obtain a candidate; its slots are held."""
    made = made or claim()
    of = target(only, alias=made.alias)

    def pick(load: Load) -> Candidate | AbstractSet[CandidateKey]:
        chosen = select_candidate(of, load, cost=made.cost, failed=frozenset(), rotation=0)
        return chosen or waited_for(of, failed=frozenset())

    deadline = asyncio.get_running_loop().time() + within_s
    return await admission.choose(
        made, pick, until=deadline, waited_s=waited_s, had_its_turn=had_its_turn
    )


async def test_a_free_slot_is_given_at_once() -> None:
    admission = Admission(Limits())
    assert await choose(admission) is BOX
    assert admission.queued(CODER) == 0


async def test_leases_are_counted_by_cost_and_forgotten_when_over() -> None:
    admission = Admission(Limits())
    with lease(admission, BOX, 2), lease(admission, BOX, 3):
        assert admission.load.in_flight == {BOX.counted_as: 5}
    assert admission.load.in_flight == {}


async def test_requests_are_served_in_the_order_they_came(scope: TaskScope) -> None:
    waiters = Waiters(Admission(Limits()), scope)
    started = [waiters.start(name) for name in "abcd"]
    for number, name in enumerate("abcd"):
        held = await started[number]
        assert waiters.served == list("abcd")[: number + 1], name
        held.close()
    await eventually(lambda: not waiters.admission.load.in_flight, what="all slots are free")


async def test_nobody_overtakes_a_large_request(scope: TaskScope) -> None:
    waiters = Waiters(Admission(Limits()), scope)
    first = await waiters.start("first", only=TWO_SLOTS)
    large = waiters.start("large", only=TWO_SLOTS, cost=2)
    await eventually(lambda: waiters.admission.queued(CODER) == 1, what="it waits")
    small = waiters.start("small", only=TWO_SLOTS)
    await eventually(lambda: waiters.admission.queued(CODER) == 2, what="both wait")
    assert waiters.served == ["first"]
    first.close()
    (await large).close()
    (await small).close()
    assert waiters.served == ["first", "large", "small"]


async def test_two_slots_that_are_freed_serve_two_requests(scope: TaskScope) -> None:
    waiters = Waiters(Admission(Limits()), scope)
    large = await waiters.start("large", only=TWO_SLOTS, cost=2)
    small = [waiters.start(name, only=TWO_SLOTS) for name in "ab"]
    await eventually(lambda: waiters.admission.queued(CODER) == 2, what="both wait")
    large.close()
    for each in small:
        (await each).close()


async def test_aliases_wait_in_queues_of_their_own_for_the_same_slot(scope: TaskScope) -> None:
    waiters = Waiters(Admission(Limits()), scope)
    first = await waiters.start("first")
    others = [waiters.start(alias, alias=alias) for alias in (CODER, CRITIC)]
    await eventually(lambda: waiters.admission.queued(CRITIC) == 1, what="it waits")
    assert waiters.admission.queued(CODER) == 1
    first.close()
    for each in others:
        (await each).close()


async def test_a_full_queue_refuses(scope: TaskScope) -> None:
    waiters = Waiters(Admission(Limits(max_queue=1)), scope)
    held = await waiters.start("held")
    waiting = waiters.start("waiting")
    await eventually(lambda: waiters.admission.queued(CODER) == 1, what="it waits")
    with pytest.raises(QueueFull, match=r"limits\.max_queue"):
        await choose(waiters.admission)
    held.close()
    (await waiting).close()


async def test_without_a_queue_whoever_finds_no_slot_is_refused() -> None:
    admission = Admission(Limits(max_queue=0))
    with lease(admission, BOX, 1), pytest.raises(QueueFull):
        await choose(admission)
    assert await choose(admission) is BOX


@pytest.mark.parametrize(
    ("max_wait_s", "within_s", "waited_s"), [(0.05, 60, 0), (60, 0.05, 0), (60, 60, 59.95)]
)
async def test_nobody_waits_longer_than_the_limit_or_the_deadline(
    max_wait_s: float, within_s: float, waited_s: float
) -> None:
    admission = Admission(Limits(max_queue_wait_s=max_wait_s))
    with lease(admission, BOX, 1), pytest.raises(QueueTimeout):
        async with asyncio.timeout(5):
            await choose(admission, within_s=within_s, waited_s=waited_s)
    assert admission.queued(CODER) == 0
    assert await choose(admission) is BOX


async def test_a_request_that_leaves_the_queue_makes_room_at_once(scope: TaskScope) -> None:
    waiters = Waiters(Admission(Limits(max_queue=2)), scope)
    held = await waiters.start("held")
    leaving, staying = waiters.start("leaving"), waiters.start("staying")
    await eventually(lambda: waiters.admission.queued(CODER) == 2, what="both wait")
    leaving.cancel()
    await eventually(lambda: waiters.admission.queued(CODER) == 1, what="one has left")
    held.close()
    (await staying).close()
    assert waiters.served == ["held", "staying"]


async def test_a_head_that_leaves_in_the_moment_it_is_woken_wakes_the_next(
    scope: TaskScope,
) -> None:
    waiters = Waiters(Admission(Limits()), scope)
    with ExitStack() as held:
        held.enter_context(lease(waiters.admission, BOX, 1))
        leaving, staying = waiters.start("leaving"), waiters.start("staying")
        await eventually(lambda: waiters.admission.queued(CODER) == 2, what="both wait")
        leaving.cancel()
    (await staying).close()


async def test_what_the_choice_raises_reaches_who_waits(scope: TaskScope) -> None:
    admission = Admission(Limits())
    gone = False

    def pick(_load: Load) -> frozenset[CandidateKey]:
        if gone:
            raise Unavailable("gone", reason="no node", retry_after_s=1)
        return frozenset()

    async def wait() -> None:
        with pytest.raises(Unavailable):
            await admission.choose(claim(), pick, until=asyncio.get_running_loop().time() + 60)

    waiting = scope.start(wait(), name="waits")
    await eventually(lambda: admission.queued(CODER) == 1, what="it waits")
    gone = True
    admission.wake()
    await waiting
    assert admission.queued(CODER) == 0


async def test_a_candidate_that_said_full_is_tried_again_after_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission_module, "FULL_FOR_S", 0.05)
    admission = Admission(Limits())
    admission.mark_full(BOX)
    assert admission.load.full == {BOX.counted_as}
    began = asyncio.get_running_loop().time()
    assert await choose(admission) is BOX
    assert asyncio.get_running_loop().time() - began >= 0.04


async def test_a_candidate_that_said_full_is_tried_again_when_one_of_ours_ends(
    scope: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission_module, "FULL_FOR_S", 60)
    waiters = Waiters(Admission(Limits()), scope)
    held = await waiters.start("held", only=TWO_SLOTS)
    waiters.admission.mark_full(TWO_SLOTS)
    waiting = waiters.start("waiting", only=TWO_SLOTS)
    await eventually(lambda: waiters.admission.queued(CODER) == 1, what="it waits")
    held.close()
    (await waiting).close()


async def test_who_had_its_turn_keeps_its_place_before_later_ones(
    scope: TaskScope,
) -> None:
    admission = Admission(Limits())
    held = await Waiters(admission, scope).start("holder")
    order: list[str] = []

    async def wait(name: str, made: Claim, *, had_its_turn: bool) -> None:
        await choose(admission, made=made, had_its_turn=had_its_turn)
        order.append(name)
        admission.release(made)

    earlier = claim()
    later = scope.start(wait("later", claim(), had_its_turn=False), name="later")
    await eventually(lambda: admission.queued(CODER) == 1, what="the later one waits")
    again = scope.start(
        wait("again", earlier, had_its_turn=True), name="again"
    )  # its node said slots_busy
    await eventually(lambda: admission.queued(CODER) == 2, what="both wait")
    held.close()
    await asyncio.gather(later, again)
    assert order == ["again", "later"]


async def test_whose_turn_comes_in_the_moment_its_time_is_over_holds_nothing(
    scope: TaskScope,
) -> None:
    admission = Admission(Limits())
    held, late = claim(), claim()
    admission.acquire(held, BOX)

    async def wait() -> None:
        with pytest.raises(QueueTimeout):
            await choose(admission, made=late, within_s=0.05)

    waiting = scope.start(wait(), name="waits")
    await eventually(lambda: admission.queued(CODER) == 1, what="it waits")
    admission.release(held)  # who is next is looked for soon,
    time.sleep(0.06)  # noqa: ASYNC251 - but the loop comes to that too late
    await waiting
    assert admission.load.in_flight == {}
    assert late.held is None


async def test_who_has_been_served_just_now_does_not_count_toward_the_bound(
    scope: TaskScope,
) -> None:
    waiters = Waiters(Admission(Limits(max_queue=1)), scope)
    held = await waiters.start("held")
    waiting = waiters.start("waiting")
    await eventually(lambda: waiters.admission.queued(CODER) == 1, what="it waits")
    held.close()
    next_one = waiters.start("next")
    waiters.admission._serve()  # the turn of the first has come; the next one arrives before it hears
    (await waiting).close()
    (await next_one).close()
    assert waiters.served == ["held", "waiting", "next"]


async def test_the_bound_of_each_key_does_not_make_one_key_of_all_who_have_none() -> None:
    admission = Admission(Limits(max_concurrent_per_key=1))
    ci = Principal(name="ci", digest=b"ci")
    for principal, may_run_more in ((ANYONE, True), (ci, False)):
        made = claim(principal=principal)
        admission.acquire(made, TWO_SLOTS)
        assert admission.may_run(principal) is may_run_more
        admission.release(made)
        assert admission.may_run(principal)


async def test_one_slot_in_four_goes_to_who_has_waited_longest(scope: TaskScope) -> None:
    waiters = Waiters(Admission(Limits()), scope)
    held = await waiters.start("held")
    old = claim(priority=Priority.BATCH)
    old.arrived_at -= AGE_S

    async def wait() -> None:
        await choose(waiters.admission, made=old)
        waiters.served.append("old")
        waiters.admission.release(old)

    waiting = scope.start(wait(), name="old")
    others = [waiters.start(name, priority=Priority.INTERACTIVE) for name in "abcd"]
    await eventually(lambda: waiters.admission.queued(CODER) == 5, what="all wait")
    held.close()
    for other in others:
        (await other).close()
    await waiting
    assert waiters.served == ["held", "a", "b", "old", "c", "d"]
