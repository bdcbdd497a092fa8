import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from rolemesh.config.settings import Limits
from rolemesh.errors import QueueFull, QueueTimeout, Unavailable
from rolemesh.gateway import admission as admission_module
from rolemesh.gateway.admission import Admission
from rolemesh.gateway.routing_table import Candidate
from rolemesh.gateway.selection import Load, select_candidate
from rolemesh.names import Alias
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

    def start(
        self, name: str, *, alias: Alias = CODER, only: Candidate = BOX, cost: int = 1
    ) -> asyncio.Task[ExitStack]:
        async def obtain() -> ExitStack:
            chosen = await choose(self.admission, alias, only, cost=cost)
            held = ExitStack()
            held.enter_context(lease(self.admission, chosen, cost))
            self.served.append(name)
            return held

        return self.scope.start(obtain(), name=name)


@contextmanager
def lease(admission: Admission, candidate: Candidate, cost: int) -> Iterator[None]:
    """Hold slots for the length of the block."""
    admission.acquire(candidate.key, cost)
    try:
        yield
    finally:
        admission.release(candidate.key, cost)


async def choose(
    admission: Admission,
    alias: Alias = CODER,
    only: Candidate = BOX,
    *,
    cost: int = 1,
    within_s: float = 60.0,
    waited_s: float = 0.0,
) -> Candidate:
    def pick(load: Load) -> Candidate | None:
        return select_candidate(target(only), load, cost=cost, failed=frozenset(), rotation=0)

    deadline = asyncio.get_running_loop().time() + within_s
    return await admission.choose(alias, pick, deadline=deadline, waited_s=waited_s)


async def test_a_free_slot_is_given_at_once() -> None:
    admission = Admission(Limits())
    assert await choose(admission) is BOX
    assert admission.queued(CODER) == 0


async def test_leases_are_counted_by_cost_and_forgotten_when_over() -> None:
    admission = Admission(Limits())
    with lease(admission, BOX, 2), lease(admission, BOX, 3):
        assert admission.load.in_flight == {BOX.key: 5}
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

    def pick(_load: Load) -> Candidate | None:
        if gone:
            raise Unavailable("gone", reason="no node", retry_after_s=1)
        return None

    async def wait() -> None:
        with pytest.raises(Unavailable):
            await admission.choose(CODER, pick, deadline=asyncio.get_running_loop().time() + 60)

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
    assert admission.load.full == {BOX.key}
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

    async def wait(name: str, waited_s: float) -> None:
        chosen = await choose(admission, waited_s=waited_s)
        with lease(admission, chosen, 1):
            order.append(name)

    later = scope.start(wait("later", 0.0), name="later")
    await eventually(lambda: admission.queued(CODER) == 1, what="the later one waits")
    again = scope.start(wait("again", 0.1), name="again")  # its node said slots_busy
    await eventually(lambda: admission.queued(CODER) == 2, what="both wait")
    held.close()
    await asyncio.gather(later, again)
    assert order == ["again", "later"]
