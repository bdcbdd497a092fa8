"""One inference request from its arrival to its end: what the gateway and the agent have in common.

A job begins on the spot. Where nothing has to be waited for, its first attempt is under way when
`begin` returns, and its end comes with the last byte of the answer: no task is made. Whatever has
to be waited for (a slot, a load, a connection, another attempt) is a coroutine.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable

from rolemesh.errors import RoleMeshError, Unavailable
from rolemesh.names import RequestId
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.exchange import Ended, Exchange
from rolemesh.relay.replies import CLIENT_CLOSED_REQUEST, status_of
from rolemesh.runtime.tasks import TaskScope

logger = logging.getLogger(__name__)


class Job(ABC):
    """One request under way. `on_end` is called once, after the record is written."""

    # What most jobs never set stands here.
    _exchange: Exchange | None = None
    _task: asyncio.Task[None] | None = None
    _failure: RoleMeshError | None = None
    _cancelled_by: RoleMeshError | None = None

    def __init__(self, request: InboundRequest, client: ClientStream) -> None:
        self.request = request
        self.client = client

    # -- what programs say -----------------------------------------------------------------

    @abstractmethod
    def start(self) -> Exchange | None:
        """Find out what is asked for and begin the first attempt; None if it has to be waited for.

        The exchange's `on_over` is `exchange_over`. Raises what the client is to be told.
        """

    @abstractmethod
    def take(self, exchange: Exchange, ended: Ended) -> bool:
        """Take what came of the first attempt; tells whether the client has its answer.

        Raises what the client is to be told.
        """

    @abstractmethod
    async def go_on(self) -> None:
        """Answer the client, with all the waiting this takes; raises what it is to be told."""

    @abstractmethod
    def leave(self) -> None:
        """Give back what the first attempt holds; it was cancelled."""

    @abstractmethod
    def record(self, status: int, phase: str, reason: str | None) -> None:
        """Write the one record of the request."""

    @abstractmethod
    def phase(self) -> str:
        """Return how far the request came that did not come to its end."""

    # -- life ------------------------------------------------------------------------------

    def begin(self, scope: TaskScope, on_end: Callable[[RequestId], None]) -> None:
        """Answer the request; what has to be waited for is a task of `scope`."""
        self._scope = scope
        self._on_end = on_end
        self.client.on_begin = self.forget_body
        try:
            self._exchange = self.start()
        except Exception as err:  # noqa: BLE001 - it is logged there, and ends only this request
            self._fail(err)
        else:
            if self._exchange is None:
                self._wait()

    def forget_body(self) -> None:
        """Let go of the request's body: an answer may take long, and nobody asks again."""
        self.request.body = b""

    def cancel(self, reason: RoleMeshError | None = None) -> None:
        """End it: the client has left, this daemon stops, or there is another `reason`."""
        self._cancelled_by = reason
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel()
            self.leave()
            self._cancelled()
        elif self._task is not None:
            self._task.cancel()

    def exchange_over(self, exchange: Exchange, ended: Ended) -> None:
        """Take the end of the first attempt."""
        self._exchange = None
        try:
            answered = self.take(exchange, ended)
        except Exception as err:  # noqa: BLE001 - as above
            self._fail(err)
            return
        if answered:
            self._end(self.client.status, "done", None)
        else:
            self._wait()

    # --------------------------------------------------------------------------------------

    def _wait(self) -> None:
        task = self._task = self._scope.start(self._run(), name=self.request.request_id)
        # A task cancelled before its first step runs no line of `_run`: not even a `finally`.
        task.add_done_callback(self._task_over)

    async def _run(self) -> None:
        try:
            await self.go_on()
        except RoleMeshError as err:
            self._failure = err
        except Exception as err:  # noqa: BLE001 - as above
            self._failure = self._internal(err)

    def _task_over(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            self._cancelled()
        elif self._failure is not None:
            self._fail(self._failure)
        else:
            self._end(self.client.status, "done", None)

    def _cancelled(self) -> None:
        if self.client.client_gone:
            self._end(CLIENT_CLOSED_REQUEST, self.phase(), None)
            return
        reason = self._cancelled_by or Unavailable(
            "this daemon is stopping", reason="stopping", retry_after_s=1.0
        )
        phase = self.phase()
        self.client.fail(reason)
        self._end(status_of(reason), phase, str(self._cancelled_by) if self._cancelled_by else None)

    def _fail(self, error: Exception) -> None:
        failure = error if isinstance(error, RoleMeshError) else self._internal(error)
        phase = self.phase()
        self.client.fail(failure)
        self._end(status_of(failure), phase, str(failure))
        # What it was raised through holds on to all of this.
        error.__traceback__ = error.__context__ = None

    def _internal(self, error: Exception) -> RoleMeshError:
        logger.error("request %s failed inside RoleMesh", self.request.request_id, exc_info=error)
        return RoleMeshError("internal error; the journal has the details")

    def _end(self, status: int, phase: str, reason: str | None) -> None:
        self.client.let_go()
        try:
            self.record(status, phase, reason)
        finally:
            self._on_end(self.request.request_id)
