"""The client's side of the relay: accepts connections and owns the requests under way.

Each request runs in a task of its own; a client that leaves, a half close included, cancels it.
"""

import asyncio
import logging
from collections.abc import Callable, Container, Coroutine
from typing import Any, Final

from rolemesh import errors
from rolemesh.config.settings import Limits
from rolemesh.names import RequestId, new_request_id, parse_request_id
from rolemesh.relay.access import Field
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.connection import ClientConnection
from rolemesh.runtime.tasks import TaskScope

logger = logging.getLogger(__name__)

FIRST_REQUEST_S: Final = 1.0
"""How long a drain waits for the request of a client that was accepted just before."""

LAST_WORDS_S: Final = 1.0
"""How long clients whose requests are ended may take to read why."""

Handle = Callable[[InboundRequest, ClientStream], Coroutine[Any, Any, None]]


class InboundServer:
    """Makes a ClientConnection for every accepted connection; owns the requests under way.

    `admit` raises for callers that may not ask at all; it is asked before a body is taken in that
    has not come with its head. `paths` are the inference paths, `other` makes the protocol that takes every other request.
    `limits` may be replaced at any time and count from then on.
    """

    def __init__(
        self,
        *,
        handle: Handle,
        admit: Callable[[str, Field], object],
        paths: Container[str],
        other: Callable[[], asyncio.Protocol],
        limits: Limits,
        scope: TaskScope,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock = self.loop.time
        self.paths = paths
        self.other = other
        self.limits = limits
        self.draining = False
        self.connections: set[ClientConnection] = set()
        self._handle = handle
        self._admit = admit
        self._scope = scope
        self._live: dict[RequestId, asyncio.Task[None]] = {}
        self._quiet = asyncio.Event()

    def __call__(self) -> ClientConnection:
        """Return the protocol for a new connection."""
        return ClientConnection(self)

    def adopt(self, connection: ClientConnection) -> None:
        """Count a connection as open."""
        self.connections.add(connection)

    def admit(self, peer: str, field: Field) -> None:
        """Raise RequestError unless this caller may ask for inference."""
        self._admit(peer, field)

    def claim_request_id(self, wanted: bytes | None) -> RequestId:
        """Return the client's request id if it is sane, with a suffix while another one lives."""
        request_id = parse_request_id(wanted.decode("latin-1")) if wanted else None
        if request_id is None:
            return new_request_id()
        if request_id in self._live:
            return RequestId(f"{request_id[:100]}.{new_request_id()[-8:]}")
        return request_id

    def start(self, request: InboundRequest, stream: ClientStream) -> asyncio.Task[None]:
        """Start the program's handler for a request."""
        request_id = request.request_id
        task = self._scope.start(self._serve(request, stream), name=request_id)
        self._live[request_id] = task
        # A task cancelled before its first step runs no line of `_serve`: not even a `finally`.
        task.add_done_callback(lambda _: self._ended(request_id))
        return task

    def _ended(self, request_id: RequestId) -> None:
        del self._live[request_id]
        self._note_quiet()

    def forget(self, connection: ClientConnection) -> None:
        """Note that a connection is closed, or handed on."""
        self.connections.discard(connection)
        self._note_quiet()

    def _note_quiet(self) -> None:
        if self.draining and not self._live and not self.connections:
            self._quiet.set()

    async def _serve(self, request: InboundRequest, stream: ClientStream) -> None:
        try:
            await self._answer(request, stream)
        except Exception:
            logger.exception("request %s failed inside RoleMesh", request.request_id)
            stream.fail(errors.RoleMeshError("internal error; the journal has the details"))

    async def _answer(self, request: InboundRequest, stream: ClientStream) -> None:
        try:
            await self._handle(request, stream)
        except errors.RoleMeshError as error:
            stream.fail(error)
        except asyncio.CancelledError:
            if not stream.client_gone:
                stream.fail(_shutting_down())
            raise

    async def drain(self, timeout_s: float) -> None:
        """Close idle connections, let requests finish for `timeout_s`, then end them.

        A request has finished once its client has taken the whole reply. A client that has just
        been accepted is still answered.
        """
        self.draining = True
        self._close_idle(but_new=True)
        patience = self.loop.call_later(min(FIRST_REQUEST_S, timeout_s), self._close_idle)
        # Who waits for this daemon's next life waits no longer than `timeout_s`, if that is possible.
        last_words_s = LAST_WORDS_S if timeout_s > 2 * LAST_WORDS_S else 0.0
        quiet = await self._quiet_within(timeout_s - last_words_s)
        patience.cancel()
        if quiet:
            return
        logger.warning("%d requests did not finish in %g s", len(self._live), timeout_s)
        for task in self._live.values():
            task.cancel()
        await self._quiet_within(LAST_WORDS_S)
        for connection in tuple(self.connections):
            connection.abort()

    def _close_idle(self, *, but_new: bool = False) -> None:
        for connection in tuple(self.connections):
            connection.close_if_idle(but_new=but_new)
        self._note_quiet()

    async def _quiet_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._quiet.wait()
        except TimeoutError:
            return False


def _shutting_down() -> errors.RoleMeshError:
    return errors.Unavailable("this daemon is stopping", reason="stopping", retry_after_s=1.0)
