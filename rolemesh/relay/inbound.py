"""The client's side of the relay: accepts connections and owns the requests under way.

Each request runs in a task of its own; a client that leaves, a half close included, cancels it.
"""

import asyncio
import logging
from collections.abc import Callable, Container, Coroutine
from typing import Any

from rolemesh import errors
from rolemesh.config.settings import Limits
from rolemesh.names import RequestId, new_request_id, parse_request_id
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.connection import ClientConnection
from rolemesh.runtime.tasks import TaskScope

logger = logging.getLogger(__name__)

Handle = Callable[[InboundRequest, ClientStream], Coroutine[Any, Any, None]]


class InboundServer:
    """Makes a ClientConnection for every accepted connection; owns the requests under way.

    `paths` are the inference paths, `other` makes the protocol that takes every other request.
    `limits` may be replaced at any time and count from then on.
    """

    def __init__(
        self,
        *,
        handle: Handle,
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
        self._scope = scope
        self._live: dict[RequestId, asyncio.Task[None]] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def __call__(self) -> ClientConnection:
        """Return the protocol for a new connection."""
        return ClientConnection(self)

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
        task = self._scope.start(self._serve(request, stream), name=request.request_id)
        self._live[request.request_id] = task
        self._idle.clear()
        return task

    async def _serve(self, request: InboundRequest, stream: ClientStream) -> None:
        try:
            await self._handle(request, stream)
        except errors.RoleMeshError as error:
            stream.fail(error)
        except asyncio.CancelledError:
            if not stream.client_gone:
                stream.fail(_shutting_down())
            raise
        except Exception:
            logger.exception("request %s failed inside RoleMesh", request.request_id)
            stream.fail(errors.RoleMeshError("internal error; the journal has the details"))
        finally:
            del self._live[request.request_id]
            if not self._live:
                self._idle.set()

    async def drain(self, timeout_s: float) -> None:
        """Close idle connections, let requests finish for `timeout_s`, then end them."""
        self.draining = True
        for connection in tuple(self.connections):
            connection.close_if_idle()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d requests did not finish in %g s", len(self._live), timeout_s)
            for task in self._live.values():
                task.cancel()
            await asyncio.wait(self._live.values(), timeout=1.0)


def _shutting_down() -> errors.RoleMeshError:
    return errors.Unavailable("this daemon is stopping", reason="stopping", retry_after_s=1.0)
