"""The request path: candidates one after another until one answers.

Another candidate may be tried only while the client has seen nothing. A failed connection or a
full node costs nothing; once a request was sent, at most MAX_SENT attempts are made, and a request
that is not streamed is not repeated after a timeout: it may still be running.

`begin` makes the first attempt on the spot where nothing has to be waited for; all else is
`dispatch`, a coroutine.
"""

import asyncio
import itertools
import json
from http import HTTPStatus
from typing import Final

from rolemesh.errors import (
    ConnectFailed,
    RequestTooSlow,
    Unavailable,
    UpstreamBroke,
    UpstreamError,
    UpstreamTimeout,
)
from rolemesh.gateway.admission import Admission
from rolemesh.gateway.health import HealthWatch
from rolemesh.gateway.routing_table import Candidate, CandidateKey, Target
from rolemesh.gateway.selection import Load, may_wait, select_candidate
from rolemesh.gateway.tables import RoutingTables
from rolemesh.names import Alias, Role
from rolemesh.relay.attempt import attempt
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.edit import RequestBody
from rolemesh.relay.exchange import Ended, Exchange, OnOver
from rolemesh.relay.headers import accept_line, encode_fields, start_line
from rolemesh.relay.paths import InferencePath
from rolemesh.relay.replies import Fields, Reply
from rolemesh.relay.upstream import UpstreamPool

MAX_SENT: Final = 2
_RETRIED_STATUSES: Final = frozenset({500, 502, 503, 504})


class Trip:
    """One request on its way; filled in as it goes, and read for its record in the log.

    `alias` is "" until it is known what is asked for; the others below it are set with it.
    """

    alias: Alias = Alias("")
    role: Role | None
    request: InboundRequest
    body: RequestBody
    path: InferencePath
    cost: int
    deadline: float
    candidate: Candidate | None = None
    attempts = 0
    sent = 0
    queue_s = 0.0
    first_byte_at = 0.0
    failed: frozenset[CandidateKey] = frozenset()
    failure: UpstreamError | Reply | None = None


class _NoMoreCandidates(Exception):
    """Nothing is left to try, nor to wait for."""


class Dispatcher:
    """Sends requests to candidates."""

    def __init__(
        self,
        *,
        tables: RoutingTables,
        admission: Admission,
        health: HealthWatch,
        pool: UpstreamPool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._tables = tables
        self._admission = admission
        self._health = health
        self._pool = pool
        self._rotation = itertools.count()

    # -- the first attempt, without waiting ------------------------------------------------

    def begin(
        self, trip: Trip, target: Target, client: ClientStream, on_over: OnOver
    ) -> Exchange | None:
        """Make the first attempt if a slot and a connection are there; None if not.

        `on_over` is to call `take`; should the client leave before, `leave`.
        """
        admission = self._admission
        if trip.alias in admission.queues:
            return None
        candidate = select_candidate(
            target,
            admission.load,
            cost=trip.cost,
            failed=trip.failed,
            rotation=next(self._rotation),
        )
        if candidate is None:
            return None
        connection = self._pool.take_idle(candidate.upstream.address)
        if connection is None:
            return None
        self._set_out(trip, candidate)
        exchange = Exchange(
            self._pool,
            connection,
            client,
            timeouts=target.timeouts,
            deadline=trip.deadline,
            added=_reply_lines(trip, candidate),
            on_over=on_over,
        )
        exchange.begin(*_request(trip, candidate, target))
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
        assert trip.candidate is not None
        self._admission.release(trip.candidate.key, trip.cost)

    def _set_out(self, trip: Trip, candidate: Candidate) -> None:
        self._admission.acquire(candidate.key, trip.cost)
        trip.candidate = candidate
        trip.attempts += 1

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
                self._give_up(trip, client)
                return
            answered = await self._attempt(trip, candidate, client)

    async def _next_candidate(self, trip: Trip) -> Candidate:
        since = self._loop.time()
        try:
            return await self._admission.choose(
                trip.alias,
                lambda load: self._choose(trip, load),
                deadline=trip.deadline,
                waited_s=trip.queue_s,
            )
        finally:
            trip.queue_s += self._loop.time() - since

    def _give_up(self, trip: Trip, client: ClientStream) -> None:
        """Tell the client what the last attempt came to."""
        if isinstance(trip.failure, Reply):
            client.send(trip.failure)
        elif trip.failure is not None:
            raise trip.failure
        else:
            reason = self._target(trip).reason
            msg = f"{trip.alias} cannot answer now: {reason}"
            raise Unavailable(msg, reason=reason, retry_after_s=2.0)

    def _target(self, trip: Trip) -> Target:
        return self._tables.target(trip.alias)

    def _choose(self, trip: Trip, load: Load) -> Candidate | None:
        """Pick the next candidate; None to wait for a slot."""
        if trip.sent >= MAX_SENT:
            raise _NoMoreCandidates
        target = self._target(trip)
        if not may_wait(target, failed=trip.failed) and _broke(trip.failure):
            trip.failed = frozenset()  # a crash is over after a restart: once more, where it was
        candidate = select_candidate(
            target, load, cost=trip.cost, failed=trip.failed, rotation=next(self._rotation)
        )
        if candidate is None and not may_wait(target, failed=trip.failed):
            raise _NoMoreCandidates
        return candidate

    async def _attempt(self, trip: Trip, candidate: Candidate, client: ClientStream) -> bool:
        """Make one attempt; tells whether the client got its answer."""
        self._set_out(trip, candidate)
        target = self._target(trip)
        try:
            ended, first_byte_at = await attempt(
                self._pool,
                candidate.upstream.address,
                client,
                _request(trip, candidate, target),
                timeouts=target.timeouts,
                deadline=trip.deadline,
                added=_reply_lines(trip, candidate),
            )
        except BaseException:
            self.leave(trip)
            raise
        return self._settle(trip, client, ended, first_byte_at)

    # -- what an attempt came to -----------------------------------------------------------

    def _settle(self, trip: Trip, client: ClientStream, ended: Ended, first_byte_at: float) -> bool:
        """Take the end of an attempt; tells whether the client got its answer."""
        self.leave(trip)
        if ended is None:
            trip.first_byte_at = first_byte_at
            return True
        candidate = trip.candidate
        assert candidate is not None
        if isinstance(ended, Reply):
            return self._take_refusal(trip, candidate, ended, client)
        if isinstance(ended, RequestTooSlow):
            raise ended
        self._health.suspect(candidate.upstream.name, candidate.upstream.node_id)
        if not self._may_try_next(trip, ended, client):
            raise ended
        trip.failure = ended
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
        if reply.status == HTTPStatus.SERVICE_UNAVAILABLE and _is_slots_busy(reply):
            self._admission.mark_full(candidate)
            return False
        trip.sent += 1
        trip.failed |= {candidate.key}
        fields = (*reply.fields, *_reply_fields(trip, candidate))
        trip.failure = Reply(status=reply.status, body=reply.body, fields=fields)
        timed_out = reply.status == HTTPStatus.GATEWAY_TIMEOUT
        if reply.status in _RETRIED_STATUSES and (trip.body.stream or not timed_out):
            return False
        client.send(trip.failure)
        return True


def _request(trip: Trip, candidate: Candidate, target: Target) -> tuple[bytes, bytes]:
    """Return head and body of the request as it is sent to a candidate."""
    upstream, request = candidate.upstream, trip.request
    accept = request.fields.get("accept")
    body = trip.body.rewritten(candidate.model, target.default_members)
    head = b"%b%b%b%bX-Request-Id: %b\r\nContent-Length: %d\r\n\r\n" % (
        start_line(upstream.address.prefix, trip.path.upstream_path),
        upstream.request_lines,
        target.load_wait_line if upstream.node_id is not None else b"",
        accept_line(accept) if accept else b"",
        request.request_id.encode(),
        len(body),
    )
    return head, body


def _reply_fields(trip: Trip, candidate: Candidate) -> Fields:
    return (
        ("X-RoleMesh-Node", candidate.upstream.name),
        ("X-RoleMesh-Model", candidate.model or trip.alias),
        ("X-RoleMesh-Attempts", str(trip.attempts)),
        ("X-RoleMesh-Queue-Ms", f"{trip.queue_s * 1000:.0f}"),
    )


def _reply_lines(trip: Trip, candidate: Candidate) -> bytes:
    model = b"" if candidate.model else encode_fields((("X-RoleMesh-Model", trip.alias),))
    return b"%b%bX-RoleMesh-Attempts: %d\r\nX-RoleMesh-Queue-Ms: %.0f\r\n" % (
        candidate.reply_lines,
        model,
        trip.attempts,
        trip.queue_s * 1000,
    )


def _broke(failure: UpstreamError | Reply | None) -> bool:
    """Tell whether the last attempt ended by a connection that broke off, here or behind a node."""
    if isinstance(failure, Reply):
        return failure.status == HTTPStatus.BAD_GATEWAY
    return isinstance(failure, UpstreamBroke)


def _is_slots_busy(reply: Reply) -> bool:
    try:
        return bool(json.loads(reply.body)["error"]["code"] == "slots_busy")
    except (ValueError, KeyError, TypeError):
        return False
