"""Slot leases and the bounded queue: the only owner of in-flight counts.

The counts are the gateway's best guess; a node is the authority over its own slots and may answer
`slots_busy`, after which it counts as full until one of our leases there ends or a moment passes.

Whoever waits is served in the order of `queue_order`. A request whose turn it is and that finds no
slot keeps what it waits for from those behind it: nobody overtakes a large request, or one that
another alias shares its slots with.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeVar

from rolemesh.config.settings import Limits
from rolemesh.errors import QueueFull, QueueTimeout
from rolemesh.gateway.breakers import Breakers
from rolemesh.gateway.queue_order import FairShares, Place, goes_first, place
from rolemesh.gateway.routing_table import Candidate, CandidateKey
from rolemesh.gateway.selection import Load
from rolemesh.names import Alias
from rolemesh.runtime.keys import Principal

FULL_FOR_S: Final = 0.25
"""How long a candidate counts as full after it said `slots_busy`."""

_K = TypeVar("_K")

Choose = Callable[[Load], Candidate | AbstractSet[CandidateKey]]
"""Picks a candidate for a waiting request, or says whose slots it waits for; may raise."""


class Claim:
    """What one request asks of the admission, and holds of it.

    `alias` is whose queue it waits in; it and `cost` are also what its slots are counted by.
    `tag`, None until it has to wait, and `arrived_at` are its place in the queue, which it keeps
    until it is answered. `is_counted`: whether it counts as one of those its key may run at once.
    """

    __slots__ = (
        "alias",
        "arrived_at",
        "cost",
        "held",
        "is_counted",
        "principal",
        "priority",
        "tag",
    )

    def __init__(
        self, alias: Alias, principal: Principal, priority: int, cost: int, arrived_at: float
    ) -> None:
        self.alias = alias
        self.principal = principal
        self.priority = priority
        self.cost = cost
        self.arrived_at = arrived_at
        self.tag: float | None = None
        self.held: Candidate | None = None
        self.is_counted = False


@dataclass(slots=True, kw_only=True, eq=False)
class _Waiting:
    claim: Claim
    choose: Choose
    served: "asyncio.Future[Candidate | None]" = field(repr=False)
    """None: there is nothing to wait for any more, as `choose` will say."""


class Admission:
    """Gives out leases; `limits` may be replaced at any time."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.breakers: Breakers[CandidateKey] = Breakers()
        self._loop = asyncio.get_running_loop()
        self._in_flight: dict[CandidateKey, int] = {}
        self._by_alias: Counter[tuple[CandidateKey, Alias]] = Counter()
        self._running: Counter[str] = Counter()
        self._full: set[CandidateKey] = set()
        self._waiting: list[_Waiting] = []
        self._shares = FairShares()
        self._served = 0
        self._pass: asyncio.Handle | None = None
        self.load = self._load()
        """What is under way now (a live view)."""
        self._load_behind = self.load

    def _load(
        self,
        awaited: Mapping[CandidateKey, int] = MappingProxyType({}),
        awaited_by: AbstractSet[tuple[CandidateKey, Alias]] = frozenset(),
        ahead: Mapping[CandidateKey, int] | None = MappingProxyType({}),
    ) -> Load:
        return Load(
            in_flight=self._in_flight,
            by_alias=self._by_alias,
            full=self._full,
            awaited=awaited,
            awaited_by=awaited_by,
            ahead=ahead,
            broken=self.breakers.open,
        )

    # -- who waits -------------------------------------------------------------------------

    def is_open(self, principal: Principal) -> bool:
        """Tell whether a new request need not ask for its turn, nor wait for others of its key."""
        return not self._waiting and (
            (principal.max_concurrent is None and self.limits.max_concurrent_per_key is None)
            or self.may_run(principal)
        )

    def queued(self, alias: Alias) -> int:
        """Return how many requests wait for this alias."""
        return sum(
            waiting.claim.alias == alias and not waiting.served.done() for waiting in self._waiting
        )

    def waiting(self) -> list[Claim]:
        """Return who waits, the next one first."""
        return [waiting.claim for waiting in self._in_order()]

    def load_behind(self) -> Load:
        """Return what is under way for a request that comes now, behind all who wait."""
        return self._load_behind if self._waiting else self.load

    def may_run(self, principal: Principal) -> bool:
        """Tell whether another request of this key may run now."""
        bound = self._bound(principal)
        return bound is None or self._running[principal.name] < bound

    def _bound(self, principal: Principal) -> int | None:
        """Return how many requests of a key may run at once; who has none is not bound as one."""
        if principal.max_concurrent is not None or not principal.digest:
            return principal.max_concurrent
        return self.limits.max_concurrent_per_key

    async def choose(
        self,
        claim: Claim,
        choose: Choose,
        *,
        until: float,
        waited_s: float = 0.0,
        had_its_turn: bool = False,
    ) -> Candidate:
        """Return a candidate as soon as it is this request's turn and `choose` finds one.

        Raises QueueFull, or QueueTimeout at the limit or at `until`; it has waited `waited_s`
        before. Its slots are held from then on, as by `acquire`. One that `had_its_turn` and found
        a node full after all is not refused, and keeps its place.
        """
        if claim.tag is None:
            claim.tag = self._tag(claim, had_its_turn=had_its_turn)
        waiting = _Waiting(claim=claim, choose=choose, served=self._loop.create_future())
        self._waiting.append(waiting)
        self._serve()
        if not waiting.served.done() and not had_its_turn:
            self._refuse_beyond_bound(waiting)
        limit = self._loop.time() + self.limits.max_queue_wait_s - waited_s
        try:
            async with asyncio.timeout_at(min(until, limit)):
                candidate = await waiting.served
        except TimeoutError as err:
            self.release(claim)  # it may have been its turn in the moment its time was over
            which = "timeouts.total_s" if until < limit else "limits.max_queue_wait_s"
            msg = f"no slot for {claim.alias} was free in time ({which})"
            raise QueueTimeout(msg, retry_after_s=1.0) from err
        except asyncio.CancelledError:
            self.release(claim)  # it may have been its turn in the moment it left
            raise
        finally:
            self._leave(waiting)
        return candidate or await self._look_again(claim, choose, until=until, waited_s=waited_s)

    def _tag(self, claim: Claim, *, had_its_turn: bool) -> float:
        alias, priority, shares = claim.alias, claim.priority, self._shares
        before = [
            each.claim.tag or 0.0
            for each in self._waiting
            if each.claim.alias == alias and each.claim.priority == priority
        ]
        if had_its_turn:
            return shares.begun(before)
        return shares.tag((alias, priority, claim.principal.name), claim.cost, before)

    async def _look_again(
        self, claim: Claim, choose: Choose, *, until: float, waited_s: float
    ) -> Candidate:
        """Have `choose` raise where the request is: an error kept in a future keeps all it saw."""
        chosen = choose(self.load)
        if isinstance(chosen, Candidate):
            self.acquire(claim, chosen)
            return chosen
        return await self.choose(claim, choose, until=until, waited_s=waited_s, had_its_turn=True)

    def _refuse_beyond_bound(self, waiting: _Waiting) -> None:
        alias = waiting.claim.alias
        before = self.queued(alias) - 1
        if before >= self.limits.max_queue:
            self._leave(waiting)
            msg = f"the queue for {alias} is full ({before} requests, limits.max_queue)"
            raise QueueFull(msg, retry_after_s=1.0)

    def _leave(self, waiting: _Waiting) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            self.wake()  # it may have kept something from those behind it
        if not self._waiting:
            self._shares.forget()

    # -- whose turn it is ------------------------------------------------------------------

    def wake(self) -> None:
        """Let those who wait look again, soon: a slot is free, or the table has changed."""
        if self._waiting and self._pass is None:
            self._pass = self._loop.call_soon(self._serve)

    def _in_order(self) -> list[_Waiting]:
        def place_of(waiting: _Waiting) -> Place:
            claim = waiting.claim
            return place(claim.priority, claim.tag or 0.0, claim.arrived_at)

        ordered = sorted(self._waiting, key=place_of)
        oldest = min(ordered, key=lambda each: each.claim.arrived_at, default=None)
        if oldest and goes_first(self._loop.time() - oldest.claim.arrived_at, self._served):
            ordered.remove(oldest)
            ordered.insert(0, oldest)
        return ordered

    def _serve(self) -> None:
        """Give out what is free, in order."""
        if self._pass is not None:
            self._pass.cancel()
            self._pass = None
        awaited: Counter[CandidateKey] = Counter()
        awaited_by: set[tuple[CandidateKey, Alias]] = set()
        ordered = self._in_order()
        for waiting in ordered:
            kept = self._offer(waiting, self._load(awaited, awaited_by, ahead=None))
            awaited.update(kept)
            awaited_by.update((key, waiting.claim.alias) for key in kept)
        # What is free now nobody wants for its own sake: it may go to who waits for another.
        ahead: Counter[CandidateKey] = Counter()
        for waiting in ordered:
            ahead.update(self._offer(waiting, self._load(awaited, awaited_by, ahead)))
        self._load_behind = self._load(awaited, awaited_by)

    def _offer(self, waiting: _Waiting, load: Load) -> AbstractSet[CandidateKey]:
        """Offer what is free to one of those who wait; return what it keeps from those behind."""
        claim = waiting.claim
        if waiting.served.done() or not self.may_run(claim.principal):
            return frozenset()
        try:
            chosen = waiting.choose(load)
        except Exception:  # noqa: BLE001 - it is raised again where the request is
            waiting.served.set_result(None)
            return frozenset()
        if not isinstance(chosen, Candidate):
            return chosen
        self.acquire(claim, chosen)
        self._shares.served(claim.tag or 0.0)
        self._served += 1
        waiting.served.set_result(chosen)
        return frozenset()

    # -- leases ----------------------------------------------------------------------------

    def acquire(self, claim: Claim, candidate: Candidate) -> None:
        """Hold slots of a candidate, until `release`."""
        key = candidate.counted_as
        claim.held = candidate
        self._in_flight[key] = self._in_flight.get(key, 0) + claim.cost
        if candidate.reserved:
            self._by_alias[key, claim.alias] += claim.cost
        principal = claim.principal
        if self._bound(principal) is not None:
            self._running[principal.name] += 1
            claim.is_counted = True
        if self.breakers.known:
            self.breakers.probing(candidate.key, self._loop.time())

    def release(self, claim: Claim) -> None:
        """Give back what `acquire` took; without effect when that was done before."""
        candidate, claim.held = claim.held, None
        if candidate is None:
            return
        key = candidate.counted_as
        left = self._in_flight.get(key, 0) - claim.cost
        if left > 0:
            self._in_flight[key] = left
        else:
            self._in_flight.pop(key, None)
        if candidate.reserved:
            _count_down(self._by_alias, (key, claim.alias), claim.cost)
        if claim.is_counted:
            claim.is_counted = False
            _count_down(self._running, claim.principal.name, 1)
        if self.breakers.known:
            self.breakers.probe_over(candidate.key, self._loop.time())
        self._full.discard(key)
        if self._waiting:
            self.wake()

    def mark_full(self, candidate: Candidate) -> None:
        """Note that a candidate has no free slot although our counts say otherwise."""
        self._full.add(candidate.counted_as)
        self._loop.call_later(FULL_FOR_S, self._unmark_full, candidate.counted_as)

    def _unmark_full(self, key: CandidateKey) -> None:
        self._full.discard(key)
        self.wake()

    # -- breakers --------------------------------------------------------------------------

    def note_failure(self, candidate: Candidate) -> None:
        """Note that the way to a candidate failed."""
        rested_at = self.breakers.failed(candidate.key, self._loop.time())
        if rested_at is not None:
            self._loop.call_at(rested_at, self._let_probe, candidate.key)

    def _let_probe(self, key: CandidateKey) -> None:
        if self.breakers.probe_over(key, self._loop.time()):
            self.wake()


def _count_down(counter: Counter[_K], key: _K, count: int) -> None:
    left = counter[key] - count
    if left > 0:
        counter[key] = left
    else:
        del counter[key]
