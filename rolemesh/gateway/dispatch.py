"""The request path: candidates one after another until one answers.

Another candidate may be tried only while the client has seen nothing. A failed connection or a
full node costs nothing; once a request was sent, at most MAX_SENT attempts are made, and a request
that is not streamed is not repeated after a timeout: it may still be running.
"""

import asyncio
import itertools
import json
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from rolemesh.errors import (
    ConnectFailed,
    Unavailable,
    UpstreamBroke,
    UpstreamError,
    UpstreamTimeout,
)
from rolemesh.gateway.admission import Admission
from rolemesh.gateway.health import HealthWatch
from rolemesh.gateway.routing_table import Candidate, Target
from rolemesh.gateway.selection import CandidateKey, Load, Selection, select_candidates
from rolemesh.gateway.tables import RoutingTables
from rolemesh.names import Alias, Role
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.edit import RequestBody
from rolemesh.relay.exchange import Bounds, Outbound, Refused, attempt
from rolemesh.relay.headers import encode_fields
from rolemesh.relay.paths import InferencePath
from rolemesh.relay.replies import Fields, Reply
from rolemesh.relay.upstream import UpstreamPool

MAX_SENT: Final = 2
_RETRIED_STATUSES: Final = frozenset({500, 502, 503, 504})


@dataclass(slots=True, kw_only=True)
class Trip:
    """One request on its way; filled in as it goes, and read for its record in the log."""

    alias: Alias
    role: Role | None = None
    inbound: InboundRequest
    body: RequestBody
    path: InferencePath
    cost: int
    deadline: float
    candidate: Candidate | None = None
    attempts: int = 0
    sent: int = 0
    queue_s: float = 0.0
    first_byte_at: float = 0.0
    failed: set[CandidateKey] = field(default_factory=set)
    node_is_full: bool = False
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
            trip.node_is_full = False
            with self._admission.lease(candidate, trip.cost):
                answered = await self._attempt(trip, candidate, client)
            if trip.node_is_full:
                self._admission.mark_full(candidate)

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
        selection = self._select(trip, load)
        if not (selection.chosen or selection.saturated) and _broke(trip.failure):
            trip.failed.clear()  # a crash is over after a restart: once more, where it happened
            selection = self._select(trip, load)
        if not (selection.chosen or selection.saturated):
            raise _NoMoreCandidates
        return selection.chosen[0] if selection.chosen else None

    def _select(self, trip: Trip, load: Load) -> Selection:
        return select_candidates(
            self._target(trip),
            load,
            cost=trip.cost,
            failed=trip.failed,
            rotation=next(self._rotation),
        )

    async def _attempt(self, trip: Trip, candidate: Candidate, client: ClientStream) -> bool:
        """Make one attempt; tells whether the client got its answer."""
        trip.candidate = candidate
        trip.attempts += 1
        try:
            result = await attempt(
                self._pool,
                candidate.upstream.address,
                self._outbound(trip, candidate),
                client,
                bounds=self._bounds(trip),
                reply_fields=lambda: _reply_fields(trip, candidate),
            )
        except UpstreamError as err:
            self._health.suspect(candidate.upstream.name, candidate.upstream.node_id)
            if not self._may_try_next(trip, err, client):
                raise
            trip.failure = err
            trip.failed.add(candidate.key)
            return False
        if isinstance(result, Refused):
            return self._take_refusal(trip, candidate, result.reply, client)
        trip.first_byte_at = result.first_byte_at
        return True

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
            trip.node_is_full = True
            return False
        trip.sent += 1
        trip.failed.add(candidate.key)
        fields = (*reply.fields, *_reply_fields(trip, candidate))
        trip.failure = Reply(status=reply.status, body=reply.body, fields=fields)
        timed_out = reply.status == HTTPStatus.GATEWAY_TIMEOUT
        if reply.status in _RETRIED_STATUSES and (trip.body.stream or not timed_out):
            return False
        client.send(trip.failure)
        return True

    def _bounds(self, trip: Trip) -> Bounds:
        timeouts = self._target(trip).timeouts
        return Bounds(
            connect_s=timeouts.connect_s,
            first_byte_s=timeouts.first_byte_s,
            idle_s=timeouts.idle_s,
            deadline=trip.deadline,
        )

    def _outbound(self, trip: Trip, candidate: Candidate) -> Outbound:
        target = self._target(trip)
        fields: Fields = (
            ("Content-Type", "application/json"),
            ("X-Request-Id", trip.inbound.request_id),
        )
        accept = trip.inbound.field("accept")
        if accept is not None:
            fields += (("Accept", accept),)
        if candidate.upstream.api_key is not None:
            fields += (("Authorization", f"Bearer {candidate.upstream.api_key}"),)
        if candidate.upstream.node_id is not None:
            fields += (("X-RoleMesh-Load-Wait", f"{target.timeouts.load_wait_s:g}"),)
        return Outbound(
            path=trip.path.upstream_path,
            fields=encode_fields(fields),
            body=trip.body.rewritten(candidate.model, target.defaults),
        )


def _reply_fields(trip: Trip, candidate: Candidate) -> Fields:
    return (
        ("X-RoleMesh-Node", candidate.upstream.name),
        ("X-RoleMesh-Model", candidate.model or trip.alias),
        ("X-RoleMesh-Attempts", str(trip.attempts)),
        ("X-RoleMesh-Queue-Ms", f"{trip.queue_s * 1000:.0f}"),
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
