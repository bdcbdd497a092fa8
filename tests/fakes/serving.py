"""A real InboundServer on a port of 127.0.0.1, with a handler that the test brings."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from rolemesh.config.settings import Limits, Listen
from rolemesh.relay.access import Field
from rolemesh.relay.application import open_application, refuse_method, route
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.exchange import Bounds, Outbound, Refused, Relayed, attempt
from rolemesh.relay.headers import encode_fields
from rolemesh.relay.inbound import Handle, InboundServer
from rolemesh.relay.paths import INFERENCE_PATHS
from rolemesh.relay.replies import Fields, Reply, json_reply
from rolemesh.relay.serving import accepting
from rolemesh.relay.upstream import UpstreamPool
from rolemesh.runtime.listeners import bind
from rolemesh.runtime.tasks import TaskScope
from tests.fakes.upstream import Upstream

DRAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    inbound: InboundServer
    port: int


@asynccontextmanager
async def serving(
    handle: Handle,
    *,
    limits: Limits | None = None,
    admit: Callable[[str, Field], object] = lambda _peer, _field: None,
    routes: Sequence[web.RouteDef] = (),
) -> AsyncIterator[Served]:
    """Serve for the length of the block, then drain."""
    all_routes = [
        route("GET", "/health", _health),
        *routes,
        *(refuse_method(path, allowed="POST") for path in INFERENCE_PATHS),
    ]
    async with (
        TaskScope() as scope,
        open_application(all_routes, max_body_bytes=1000) as application,
    ):
        inbound = InboundServer(
            handle=handle,
            admit=admit,
            paths=INFERENCE_PATHS,
            other=application,
            limits=limits or Limits(),
            scope=scope,
        )
        (listener,) = bind(Listen(port=0))
        async with accepting([listener], inbound):
            yield Served(inbound, listener.getsockname()[1])
        await inbound.drain(DRAIN_S)


async def _health(_request: web.Request) -> Reply:
    return json_reply({"status": "ok"})


async def echo(request: InboundRequest, client: ClientStream) -> None:
    """Answer with what was read."""
    body: object = request.body.decode("latin-1")
    fields = {name.decode(): value.decode("latin-1") for name, value in request.fields.items()}
    tree = {"path": request.path, "body": body, "fields": fields, "id": request.request_id}
    client.send(Reply(status=200, body=json.dumps(tree).encode()))


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
    results: list[Relayed | Refused | BaseException] = field(default_factory=list)

    async def __call__(self, request: InboundRequest, client: ClientStream) -> None:
        try:
            result = await self._attempt(request, client)
        except BaseException as err:
            self.results.append(err)
            raise
        self.results.append(result)
        if isinstance(result, Refused):
            client.send(result.reply)

    async def _attempt(self, request: InboundRequest, client: ClientStream) -> Relayed | Refused:
        return await attempt(
            self.pool,
            self.upstream.address,
            Outbound(
                path=INFERENCE_PATHS[request.path].upstream_path,
                fields=encode_fields((("Content-Type", "application/json"),)),
                body=request.body,
            ),
            client,
            bounds=Bounds(
                connect_s=self.connect_s,
                first_byte_s=self.first_byte_s,
                idle_s=self.idle_s,
                deadline=asyncio.get_running_loop().time() + self.total_s,
            ),
            reply_fields=lambda: self.reply_fields,
        )
