"""Slot leases and bounded queues: the only owner of in-flight counts.

The counts are the gateway's best guess; a node is the authority over its own slots and may answer
`slots_busy`, after which it counts as full until one of our leases there ends or a moment passes.
Requests of one alias wait in the order they came.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rolemesh.config.settings import Limits
from rolemesh.errors import QueueFull, QueueTimeout
from rolemesh.gateway.routing_table import Candidate
from rolemesh.gateway.selection import CandidateKey, Load
from rolemesh.names import Alias

FULL_FOR_S: Final = 0.25
"""How long a candidate counts as full after it said `slots_busy`."""

Choose = Callable[[Load], Candidate | None]
"""Picks a candidate for the request at the head of a queue; None to wait on; may raise."""


class Admission:
    """Gives out leases; `limits` may be replaced at any time."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._loop = asyncio.get_running_loop()
        self._in_flight: Counter[CandidateKey] = Counter()
        self._full: set[CandidateKey] = set()
        self._queues: dict[Alias, deque[asyncio.Event]] = {}

    @property
    def load(self) -> Load:
        """Return what is under way now (a live view)."""
        return Load(in_flight=self._in_flight, full=self._full)

    def queued(self, alias: Alias) -> int:
        """Return how many requests wait for this alias."""
        return len(self._queues.get(alias, ()))

    async def choose(
        self, alias: Alias, choose: Choose, *, deadline: float, waited_s: float = 0.0
    ) -> Candidate:
        """Return a candidate as soon as `choose` finds one, in the order of arrival.

        Raises QueueFull, or QueueTimeout at the limit or at `deadline`; the request has waited
        `waited_s` before, and then keeps its place at the front. The caller leases the candidate before it awaits anything.
        """
        queue = self._queues.get(alias)
        if not queue:
            candidate = choose(self.load)
            if candidate is not None:
                return candidate
            queue = self._queues.setdefault(alias, deque())
        had_its_turn = waited_s > 0.0
        if not had_its_turn and len(queue) >= self.limits.max_queue:
            msg = f"the queue for {alias} is full ({len(queue)} requests, limits.max_queue)"
            raise QueueFull(msg, retry_after_s=1.0)
        woken = asyncio.Event()
        if had_its_turn:
            queue.appendleft(woken)  # a node had no slot after all: its place is not lost
            woken.set()
        else:
            queue.append(woken)
        limit = self._loop.time() + self.limits.max_queue_wait_s - waited_s
        try:
            return await self._wait(queue, woken, choose, until=min(deadline, limit))
        except TimeoutError as err:
            which = "timeouts.total_s" if deadline < limit else "limits.max_queue_wait_s"
            msg = f"no slot for {alias} was free in time ({which})"
            raise QueueTimeout(msg, retry_after_s=1.0) from err
        finally:
            queue.remove(woken)
            if queue:
                queue[0].set()
            elif self._queues.get(alias) is queue:
                del self._queues[alias]

    async def _wait(
        self, queue: deque[asyncio.Event], woken: asyncio.Event, choose: Choose, *, until: float
    ) -> Candidate:
        async with asyncio.timeout_at(until):
            while True:
                await woken.wait()
                woken.clear()
                if queue[0] is woken:
                    candidate = choose(self.load)
                    if candidate is not None:
                        return candidate

    @contextmanager
    def lease(self, candidate: Candidate, cost: int) -> Iterator[None]:
        """Hold `cost` slots of a candidate."""
        self._in_flight[candidate.key] += cost
        try:
            yield
        finally:
            self._in_flight[candidate.key] -= cost
            if self._in_flight[candidate.key] <= 0:
                del self._in_flight[candidate.key]
            self._full.discard(candidate.key)
            self.wake()

    def mark_full(self, candidate: Candidate) -> None:
        """Note that a candidate has no free slot although our counts say otherwise."""
        self._full.add(candidate.key)
        self._loop.call_later(FULL_FOR_S, self._unmark_full, candidate.key)

    def _unmark_full(self, key: CandidateKey) -> None:
        self._full.discard(key)
        self.wake()

    def wake(self) -> None:
        """Let the head of each queue look again: a slot is free, or the table has changed."""
        for queue in self._queues.values():
            if queue:
                queue[0].set()
