"""The request path: candidates one after another until one answers.

Another candidate may be tried only while the client has seen nothing of an answer. A failed
connection or a full node costs nothing; once a request was sent, at most MAX_SENT attempts are
made, and a request that is not streamed is not repeated after a timeout: it may still be running.
Where an alias has nobody left, its fallback is next, as far as the client's key may use it.

`begin` makes the first attempt on the spot where nothing has to be waited for; all else is
`dispatch`, a coroutine.
"""

import asyncio
from collections.abc import Set as AbstractSet
from http import HTTPStatus
from typing import Final

from rolemesh.errors import (
    ConnectFailed,
    RequestCrashesUpstream,
    RequestTooSlow,
    Unavailable,
    UpstreamBroke,
    UpstreamError,
    UpstreamTimeout,
)
from rolemesh.gateway.admission import Admission
from rolemesh.gateway.affinity import AffinityIndex
from rolemesh.gateway.chooser import Chooser
from rolemesh.gateway.crash_guard import CrashGuard
from rolemesh.gateway.health import HealthWatch
from rolemesh.gateway.routing_table import Candidate, CandidateKey, Target
from rolemesh.gateway.selection import Load, may_wait, waited_for
from rolemesh.gateway.tables import RoutingTables
from rolemesh.gateway.trip import Trip, is_crash, is_slots_busy, outbound, reply_fields, reply_lines
from rolemesh.relay.attempt import attempt
from rolemesh.relay.client import ClientStream
from rolemesh.relay.exchange import Ended, Exchange, OnOver
from rolemesh.relay.replies import Reply
from rolemesh.relay.upstream import UpstreamPool

MAX_SENT: Final = 2
_RETRIED_STATUSES: Final = frozenset({500, 502, 503, 504})
_WAY_FAILED: Final = frozenset({502, 503, 504})
"""What an upstream says when it could not do its part at all; of others it is a sign of life."""


class _NoMoreCandidates(Exception):
    """Nothing is left to try, nor to wait for."""


class Dispatcher:
    """Sends requests to candidates."""

    def __init__(
        self,
        *,
        tables: RoutingTables,
        admission: Admission,
        affinity: AffinityIndex,
        health: HealthWatch,
        pool: UpstreamPool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._chooser = Chooser(admission, affinity)
        self._tables = tables
        self._admission = admission
        self._health = health
        self._pool = pool
        self._crashes = CrashGuard()

    # -- the first attempt, without waiting ------------------------------------------------

    def begin(
        self, trip: Trip, target: Target, client: ClientStream, on_over: OnOver
    ) -> Exchange | None:
        """Make the first attempt if a slot and a connection are there; None if not.

        `on_over` is to call `take`; should the client leave before, `leave`.
        """
        admission, claim = self._admission, trip.claim
        if self._crashes.known and self._crashes.refuses(trip.request.body, self._loop.time()):
            raise _crashes(trip)
        if not admission.is_open(claim.principal):
            return None
        candidate = self._chooser.select(trip, target, admission.load)
        if not isinstance(candidate, Candidate):
            return None
        connection = self._pool.take_idle(candidate.upstream.address)
        if connection is None:
            return None
        admission.acquire(claim, candidate)
        self._chooser.set_out(trip, candidate)
        exchange = trip.kind(
            self._pool,
            connection,
            client,
            timeouts=target.timeouts,
            deadline=trip.deadline,
            added=reply_lines(trip, candidate),
            on_over=on_over,
        )
        exchange.begin(*outbound(trip, candidate, target))
        return exchange

    def take(self, trip: Trip, client: ClientStream, exchange: Exchange, ended: Ended) -> bool:
        """Take what the first attempt came to; tells whether the client got its answer.

        Raises what the client is to be told.
        """
        if exchange.found_dead and isinstance(ended, UpstreamBroke):
            self.leave(trip)
            trip.attempts -= 1  # nothing was asked: the connection had been closed before
            return False
        return self._settle(trip, client, ended, exchange.first_byte_at)

    def leave(self, trip: Trip) -> None:
        """Give back the slots of the attempt under way."""
        self._admission.release(trip.claim)

    # -- with all the waiting it takes -----------------------------------------------------

    async def dispatch(self, trip: Trip, client: ClientStream) -> None:
        """Answer one request, or raise what the client is to be told.

        The target is looked up anew for each attempt, so that a request in the queue follows what
        happens to the nodes meanwhile.
        """
        if not self._target(trip).usable:
            await self._health.refresh()
        answered = False
        while not answered:
            try:
                candidate = await self._next_candidate(trip)
            except _NoMoreCandidates:
                if self._fall_back(trip):
                    continue
                self._give_up(trip, client)
                return
            answered = await self._attempt(trip, candidate, client)

    async def _next_candidate(self, trip: Trip) -> Candidate:
        """Return the next candidate, with its slots held."""
        since = self._loop.time()
        try:
            return await self._admission.choose(
                trip.claim,
                lambda load: self._choose(trip, load),
                until=trip.deadline,
                waited_s=trip.queue_s,
                had_its_turn=trip.attempts > 0,
            )
        finally:
            trip.queue_s += self._loop.time() - since

    def _choose(self, trip: Trip, load: Load) -> Candidate | AbstractSet[CandidateKey]:
        """Pick the next candidate, or say whose slots are waited for."""
        if trip.sent >= MAX_SENT:
            raise _NoMoreCandidates
        target = self._target(trip)
        last_hop = not self._next_hop(trip)
        if last_hop and not may_wait(target, failed=trip.failed) and _broke(trip.failure):
            trip.failed = frozenset()  # a crash is over after a restart: once more, where it was
        chosen = self._chooser.select(trip, target, load)
        if chosen is not None:
            return chosen
        if not may_wait(target, failed=trip.failed):
            raise _NoMoreCandidates
        return waited_for(target, failed=trip.failed)

    def _target(self, trip: Trip) -> Target:
        return self._tables.target(trip.claim.alias)

    def _next_hop(self, trip: Trip) -> Target | None:
        """Return the fallback that comes after the alias now tried, None if there is none."""
        targets = self._tables.current.targets
        chain = self._tables.target(trip.alias).fallback
        at = chain.index(trip.claim.alias) + 1 if trip.claim.alias in chain else 0
        roles = trip.claim.principal.roles
        return next(
            (
                targets[alias]
                for alias in chain[at:]
                if alias in targets and (roles is None or alias in roles)
            ),
            None,
        )

    def _fall_back(self, trip: Trip) -> bool:
        """Go on with the next alias of the chain; tells whether there is one."""
        if trip.sent >= MAX_SENT:
            return False
        hop = self._next_hop(trip)
        if hop is None:
            return False
        trip.claim.alias = hop.alias
        trip.role = hop.role
        return True

    def _give_up(self, trip: Trip, client: ClientStream) -> None:
        """Tell the client what the last attempt came to."""
        if isinstance(trip.failure, Reply):
            client.send(trip.failure)
        elif trip.failure is not None:
            raise trip.failure
        else:
            reason = self._tables.target(trip.alias).reason
            msg = f"{trip.alias} cannot answer now: {reason}"
            raise Unavailable(msg, reason=reason, retry_after_s=2.0)

    async def _attempt(self, trip: Trip, candidate: Candidate, client: ClientStream) -> bool:
        """Make one attempt; tells whether the client got its answer."""
        trip.attempt_at = self._loop.time()
        self._chooser.set_out(trip, candidate)
        target = self._target(trip)
        try:
            ended, first_byte_at = await attempt(
                self._pool,
                candidate.upstream.address,
                client,
                outbound(trip, candidate, target),
                timeouts=target.timeouts,
                deadline=trip.deadline,
                added=reply_lines(trip, candidate),
                kind=trip.kind,
            )
        except BaseException:
            self.leave(trip)
            raise
        return self._settle(trip, client, ended, first_byte_at)

    # -- what an attempt came to -----------------------------------------------------------

    def _settle(self, trip: Trip, client: ClientStream, ended: Ended, first_byte_at: float) -> bool:
        """Take the end of an attempt; tells whether the client got its answer."""
        self.leave(trip)
        candidate = trip.candidate
        assert candidate is not None
        if ended is None:
            trip.first_byte_at = first_byte_at
            if self._admission.breakers.known:
                self._admission.breakers.answered(candidate.key)
            self._chooser.answered(trip, candidate)
            return True
        if isinstance(ended, Reply):
            return self._take_refusal(trip, candidate, ended, client)
        if isinstance(ended, RequestTooSlow):
            raise ended
        return self._take_failure(trip, candidate, ended, client)

    def _take_failure(
        self, trip: Trip, candidate: Candidate, error: UpstreamError, client: ClientStream
    ) -> bool:
        upstream = candidate.upstream
        self._health.suspect(upstream.name, upstream.node_id)
        self._admission.note_failure(candidate)
        # A node's own connection breaks with the node, whatever was asked of it.
        if upstream.node_id is None and isinstance(error, UpstreamBroke):
            self._note_crash(trip)
        if not self._may_try_next(trip, error, client):
            raise error
        trip.failure = error
        trip.failed |= {candidate.key}
        return False

    def _may_try_next(self, trip: Trip, error: UpstreamError, client: ClientStream) -> bool:
        """Tell whether another candidate may be tried after a failed attempt."""
        if isinstance(error, ConnectFailed):
            return True
        trip.sent += 1
        if client.started or self._loop.time() >= trip.deadline:
            return False
        return trip.body.stream or not isinstance(error, UpstreamTimeout)

    def _take_refusal(
        self, trip: Trip, candidate: Candidate, reply: Reply, client: ClientStream
    ) -> bool:
        """Take a 5xx; tells whether it is the client's answer."""
        if reply.status == HTTPStatus.SERVICE_UNAVAILABLE and is_slots_busy(reply):
            self._admission.mark_full(candidate)
            return False
        if reply.status in _WAY_FAILED:
            self._admission.note_failure(candidate)
        else:
            self._admission.breakers.answered(candidate.key)
        if is_crash(reply):
            self._note_crash(trip)
        trip.sent += 1
        trip.failed |= {candidate.key}
        fields = (*reply.fields, *reply_fields(trip, candidate))
        trip.failure = Reply(status=reply.status, body=reply.body, fields=fields)
        timed_out = reply.status == HTTPStatus.GATEWAY_TIMEOUT
        if reply.status in _RETRIED_STATUSES and (trip.body.stream or not timed_out):
            return False
        client.send(trip.failure)
        return True

    def _note_crash(self, trip: Trip) -> None:
        """Note that an upstream was gone after this request; raises when that is no accident."""
        sent_at = trip.attempt_at or trip.request.received_at
        if self._crashes.broke(trip.request.body, sent_at, self._loop.time()):
            raise _crashes(trip)


def _crashes(trip: Trip) -> RequestCrashesUpstream:
    name = "-" if trip.candidate is None else trip.candidate.upstream.name
    msg = "a request like this has broken two upstreams; it is refused for ten minutes"
    return RequestCrashesUpstream(msg, upstream=name)


def _broke(failure: UpstreamError | Reply | None) -> bool:
    """Tell whether the last attempt ended by a connection that broke off, here or behind a node."""
    if isinstance(failure, Reply):
        return failure.status == HTTPStatus.BAD_GATEWAY
    return isinstance(failure, UpstreamBroke)
