"""Slot leases and bounded queues: the only owner of in-flight counts.

The counts are the gateway's best guess; a node is the authority over its own slots and may answer
`slots_busy`, after which it counts as full until one of our leases there ends or a moment passes.
Requests of one alias wait in the order they came.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from rolemesh.config.settings import Limits
from rolemesh.errors import QueueFull, QueueTimeout
from rolemesh.gateway.routing_table import Candidate, CandidateKey
from rolemesh.gateway.selection import Load
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
        self._in_flight: dict[CandidateKey, int] = {}
        self._full: set[CandidateKey] = set()
        self.queues: dict[Alias, deque[asyncio.Event]] = {}
        """Who waits, by alias; for others only to look at."""
        self.load = Load(in_flight=self._in_flight, full=self._full)
        """What is under way now (a live view)."""

    def queued(self, alias: Alias) -> int:
        """Return how many requests wait for this alias."""
        queue = self.queues.get(alias)
        return len(queue) if queue else 0

    async def choose(
        self, alias: Alias, choose: Choose, *, deadline: float, waited_s: float = 0.0
    ) -> Candidate:
        """Return a candidate as soon as `choose` finds one, in the order of arrival.

        Raises QueueFull, or QueueTimeout at the limit or at `deadline`; the request has waited
        `waited_s` before, and then keeps its place at the front. The caller acquires the candidate
        before it awaits anything.
        """
        queue = self.queues.get(alias)
        if not queue:
            candidate = choose(self.load)
            if candidate is not None:
                return candidate
            queue = self.queues.setdefault(alias, deque())
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
            elif self.queues.get(alias) is queue:
                del self.queues[alias]

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

    def acquire(self, key: CandidateKey, cost: int) -> None:
        """Hold `cost` slots of a candidate, until `release`."""
        self._in_flight[key] = self._in_flight.get(key, 0) + cost

    def release(self, key: CandidateKey, cost: int) -> None:
        """Give back what `acquire` took."""
        left = self._in_flight.get(key, 0) - cost
        if left > 0:
            self._in_flight[key] = left
        else:
            self._in_flight.pop(key, None)
        self._full.discard(key)
        if self.queues:
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
        for queue in self.queues.values():
            if queue:
                queue[0].set()
