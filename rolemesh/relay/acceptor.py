"""What a client connection needs of the server that accepted it."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rolemesh.config.settings import Limits
from rolemesh.names import RequestId
from rolemesh.relay.access import Field
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.deadlines import Deadlines, Timed
from rolemesh.relay.job import Job
from rolemesh.relay.outbox import Outbox
from rolemesh.relay.paths import InferencePath
from rolemesh.runtime.tasks import TaskScope


class Acceptor(Protocol):
    """The server that accepted a connection, as the connection sees it: InboundServer."""

    loop: asyncio.AbstractEventLoop
    clock: Callable[[], float]
    paths: Mapping[str, InferencePath]
    other: Callable[[], asyncio.Protocol]
    allowed_origins: tuple[str, ...]
    limits: Limits
    draining: bool
    outbox: Outbox
    scope: TaskScope
    make_job: Callable[[InboundRequest, ClientStream], Job]
    live: dict[RequestId, Job]
    deadlines: Deadlines[Timed]

    def adopt(self, connection: Any) -> None:
        """Count a connection as open."""

    def forget(self, connection: Any) -> None:
        """Count it no longer."""

    def admit(self, peer: str, field: Field) -> None:
        """Raise RequestError unless this caller may ask for inference."""

    def claim_request_id(self, wanted: bytes) -> RequestId:
        """Return the client's request id, or one of ours."""

    def ended(self, request_id: RequestId) -> None:
        """Take a job out of `live`."""
