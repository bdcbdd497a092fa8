"""A real InboundServer on a port of 127.0.0.1, with a handler that the test brings."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from rolemesh.config.settings import Limits, Listen, Timeouts
from rolemesh.relay.access import Field
from rolemesh.relay.application import open_application, route
from rolemesh.relay.attempt import attempt, request_head
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.exchange import Ended, Exchange
from rolemesh.relay.handoff import Admit
from rolemesh.relay.headers import encode_fields
from rolemesh.relay.inbound import InboundServer
from rolemesh.relay.job import Job
from rolemesh.relay.paths import INFERENCE_PATHS
from rolemesh.relay.replies import Fields, Reply, json_reply
from rolemesh.relay.serving import Accepting, accepting
from rolemesh.relay.upstream import UpstreamPool
from rolemesh.runtime.listeners import bind
from rolemesh.runtime.tasks import TaskScope
from tests.fakes.upstream import Upstream

DRAIN_S = 2.0

Handle = Callable[[InboundRequest, ClientStream], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    inbound: InboundServer
    port: int
    listener: socket.socket
    accepting: Accepting


@asynccontextmanager
async def serving(
    handle: Handle,
    *,
    limits: Limits | None = None,
    admit: Callable[[str, Field], object] = lambda _peer, _field: None,
    admit_other: Admit = lambda *_: None,
    allowed_origins: tuple[str, ...] = (),
    routes: Sequence[web.RouteDef] = (),
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Served]:
    """Serve for the length of the block, then drain."""
    all_routes = [
        route("GET", "/health", _health),
        *routes,
    ]
    async with (
        TaskScope() as scope,
        open_application(
            all_routes,
            max_body_bytes=1000,
            admit=admit_other,
            allowed_origins=lambda: allowed_origins,
        ) as application,
    ):
        inbound = InboundServer(
            make_job=lambda request, client: HandlerJob(handle, request, client),
            admit=admit,
            paths=INFERENCE_PATHS,
            other=application,
            limits=limits or Limits(),
            scope=scope,
        )
        (listener,) = bind(Listen(host=(host,), port=0))
        async with accepting([listener], inbound, tls) as server:
            yield Served(inbound, listener.getsockname()[1], listener, server)
        await inbound.drain(DRAIN_S)


async def _health(_request: web.Request) -> Reply:
    return json_reply({"status": "ok"})


async def echo(request: InboundRequest, client: ClientStream) -> None:
    """Answer with what was read."""
    body: object = bytes(request.body).decode("latin-1")
    tree = {
        "path": request.path,
        "body": body,
        "fields": dict(request.fields),
        "id": request.request_id,
    }
    client.send(Reply(status=200, body=json.dumps(tree).encode()))


class HandlerJob(Job):
    """A job that is a coroutine from its beginning."""

    def __init__(self, handle: Handle, request: InboundRequest, client: ClientStream) -> None:
        super().__init__(request, client)
        self._handle = handle

    def start(self) -> Exchange | None:
        return None

    def take(self, exchange: Exchange, ended: Ended) -> bool:
        raise NotImplementedError

    async def go_on(self) -> None:
        await self._handle(self.request, self.client)

    def leave(self) -> None:
        raise NotImplementedError

    def record(self, status: int, phase: str, reason: str | None) -> None:
        pass

    def phase(self) -> str:
        return "upstream"


@dataclass(slots=True, kw_only=True)
class Relay:
    """A handler that makes one attempt at an upstream; `results` are what attempts came to."""

    upstream: Upstream
    pool: UpstreamPool = field(default_factory=UpstreamPool)
    connect_s: float = 5.0
    first_byte_s: float = 30.0
    idle_s: float = 30.0
    total_s: float = 60.0
    reply_fields: Fields = ()
    tls: ssl.SSLContext | None = None
    kind: Callable[..., Exchange] = Exchange
    results: list[Any] = field(default_factory=list)

    async def __call__(self, request: InboundRequest, client: ClientStream) -> None:
        try:
            ended = await self._attempt(request, client)
        except BaseException as err:
            self.results.append(err)
            raise
        self.results.append(ended)
        if isinstance(ended, Reply):
            client.send(ended)
        elif ended is not None:
            raise ended

    async def _attempt(self, request: InboundRequest, client: ClientStream) -> Ended:
        address = self.upstream.address
        if self.tls is not None:
            address = address.verified_by(self.tls)
        ended, _first_byte_at = await attempt(
            self.pool,
            address,
            client,
            (
                request_head(
                    address,
                    INFERENCE_PATHS[request.path].upstream_path,
                    encode_fields((("Content-Type", "application/json"),)),
                    request.request_id,
                    request.body,
                ),
                request.body,
            ),
            timeouts=Timeouts(
                connect_s=self.connect_s, first_byte_s=self.first_byte_s, idle_s=self.idle_s
            ),
            deadline=asyncio.get_running_loop().time() + self.total_s,
            added=encode_fields(self.reply_fields),
            kind=self.kind,
        )
        return ended
