"""The client's side of the relay: accepts connections and owns the requests under way.

A client that leaves, a half close included, cancels its request.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final
from weakref import WeakSet

from rolemesh.config.settings import Limits
from rolemesh.names import RequestId, new_request_id, parse_request_id
from rolemesh.relay.access import Field
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.connection import ClientConnection
from rolemesh.relay.deadlines import Deadlines, Timed
from rolemesh.relay.job import Job
from rolemesh.relay.outbox import Outbox
from rolemesh.relay.paths import InferencePath
from rolemesh.runtime.tasks import TaskScope

logger = logging.getLogger(__name__)

FIRST_REQUEST_S: Final = 1.0
"""How long a drain waits for the request of a client that was accepted just before."""

NEXT_REQUEST_S: Final = 5.0
"""How long a drain without a limit waits for the next requests of clients that keep connections.

With the reply they learn to connect anew. A request that meets a connection being closed is lost.
"""

LAST_WORDS_S: Final = 1.0
"""How long clients whose requests are ended may take to read why."""

MakeJob = Callable[[InboundRequest, ClientStream], Job]


class InboundServer:
    """Makes a ClientConnection for every accepted connection; owns the requests under way.

    `admit` raises for callers that may not ask at all; it is asked before a body is taken in that
    has not come with its head. `paths` are the inference paths, `other` makes the protocol that takes
    every other request. `limits`, `paths` and `allowed_origins` (see cors) may be replaced at any time
    and count from then on.
    """

    def __init__(
        self,
        *,
        make_job: MakeJob,
        admit: Callable[[str, Field], object],
        paths: Mapping[str, InferencePath],
        other: Callable[[], asyncio.Protocol],
        limits: Limits,
        scope: TaskScope,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock = self.loop.time
        self.paths = paths
        self.other = other
        self.limits = limits
        self.allowed_origins: tuple[str, ...] = ()
        self.draining = False
        self.keeps_idle = True
        self.connections: set[ClientConnection] = set()
        self._handshakes: WeakSet[ClientConnection] = WeakSet()  # one that fails just vanishes
        self.deadlines: Deadlines[Timed] = Deadlines(self.loop)
        self.make_job = make_job
        self._admit = admit
        self.scope = scope
        self.live: dict[RequestId, Job] = {}
        self.outbox = Outbox(self.loop, self.live)
        self._quiet = asyncio.Event()
        self._drain_limit: asyncio.Timeout | None = None

    def __call__(self) -> ClientConnection:
        """Return the protocol for a new connection."""
        return ClientConnection(self)

    def secured(self) -> ClientConnection:
        """Return the protocol for a new connection whose TLS handshake comes first."""
        connection = self()
        self._handshakes.add(connection)
        return connection

    def admit(self, peer: str, field: Field) -> None:
        """Raise RequestError unless this caller may ask for inference."""
        self._admit(peer, field)

    def claim_request_id(self, wanted: bytes) -> RequestId:
        """Return the client's request id if it is sane, with a suffix while another one lives."""
        request_id = parse_request_id(wanted.decode("latin-1"))
        if request_id is None:
            return new_request_id()
        if request_id in self.live:
            return RequestId(f"{request_id[:100]}.{new_request_id()[-8:]}")
        return request_id

    def ended(self, request_id: RequestId) -> None:
        """Note that a job has ended."""
        del self.live[request_id]
        if self.draining:
            self._note_quiet()

    def adopt(self, connection: ClientConnection) -> None:
        """Count a connection as open."""
        self.connections.add(connection)
        if self._handshakes:
            self._handshakes.discard(connection)

    def forget(self, connection: ClientConnection) -> None:
        """Note that a connection is closed, or handed on."""
        self.connections.discard(connection)
        self.deadlines.discard(connection)
        if self.draining:
            self._note_quiet()

    def _note_quiet(self) -> None:
        if not self.live and not self.connections and not self._handshakes:
            self._quiet.set()

    async def drain(self, timeout_s: float | None) -> None:
        """Close idle connections, let requests finish for `timeout_s`, then end them.

        None: they may take as long as they do unless `hurry` bounds it, and with `keeps_idle` idle
        connections are kept for a moment, for a last request each. A request has finished once its client has taken
        the whole reply. A client that has just been accepted is still answered.
        """
        self.draining = True
        for connection in self.connections:
            connection.keeps_alive = False
        if timeout_s is None and self.keeps_idle:
            self._note_quiet()
            patience_s, end = NEXT_REQUEST_S, None
        elif timeout_s is None:
            self._close_idle(but_new=True)
            patience_s, end = FIRST_REQUEST_S, None
        else:
            self._close_idle(but_new=True)
            patience_s, end = min(FIRST_REQUEST_S, timeout_s), self._drain_end(timeout_s)
        patience = self.loop.call_later(patience_s, self._lose_patience)
        self._drain_limit = asyncio.timeout_at(end)
        quiet = await self._quiet_within(self._drain_limit)
        patience.cancel()
        if quiet:
            return
        logger.warning("%d requests did not finish in time", len(self.live))
        for job in tuple(self.live.values()):
            job.cancel()
        await self._quiet_within(asyncio.timeout(LAST_WORDS_S))
        for connection in tuple(self.connections):
            connection.abort()

    def hurry(self, timeout_s: float) -> None:
        """Give the requests of a drain that is under way `timeout_s` from now on."""
        assert self._drain_limit is not None
        self._drain_limit.reschedule(self._drain_end(timeout_s))
        self._lose_patience()

    def _drain_end(self, timeout_s: float) -> float:
        # Who waits for this daemon's next life waits no longer than that, if it is possible.
        last_words_s = LAST_WORDS_S if timeout_s > 2 * LAST_WORDS_S else 0.0
        return self.loop.time() + timeout_s - last_words_s

    def _lose_patience(self) -> None:
        self._handshakes.clear()
        self._close_idle()

    def _close_idle(self, *, but_new: bool = False) -> None:
        for connection in tuple(self.connections):
            connection.close_if_idle(but_new=but_new)
        self._note_quiet()

    async def _quiet_within(self, limit: asyncio.Timeout) -> bool:
        try:
            async with limit:
                return await self._quiet.wait()
        except TimeoutError:
            return False
