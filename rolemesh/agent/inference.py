"""The request path of a node: model_id -> ready instance -> slots -> relay -> record."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from http import HTTPStatus
from math import inf, nan
from typing import Final

from rolemesh.address import UpstreamAddress
from rolemesh.agent.access import AgentAccess
from rolemesh.agent.fleet import Fleet
from rolemesh.agent.instance_files import InstanceFiles
from rolemesh.agent.slots import Lease
from rolemesh.agent.streaming import streamed
from rolemesh.config.settings import Timeouts
from rolemesh.errors import BadRequest, ConnectFailed, RoleMeshError
from rolemesh.names import InstanceName, ModelId, NodeId
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.collect import collect
from rolemesh.relay.edit import RequestBody
from rolemesh.relay.exchange import Bounds, Outbound, Refused, attempt
from rolemesh.relay.headers import encode_fields
from rolemesh.relay.paths import INFERENCE_PATHS
from rolemesh.relay.replies import CLIENT_CLOSED_REQUEST, Fields, Reply, status_of
from rolemesh.relay.upstream import UpstreamPool
from rolemesh.runtime.log import fields, quoted

logger = logging.getLogger(__name__)

BOUNDS: Final = Timeouts()
"""What bounds direct clients. A gateway brings its own and leaves when they are over."""

CRASH_NOTICE_S: Final = 2.0
"""How long the end of a llama-server may take to become known, from the first failure on."""

LOAD_WAIT_FIELD: Final = "x-rolemesh-load-wait"


@dataclass(slots=True, kw_only=True)
class _Record:
    """What is known of one request, and logged at its end."""

    client: str = "-"
    by_gateway: bool = False
    model_id: ModelId | None = None
    instance: InstanceName | None = None
    ready_at: float | None = None
    first_byte_at: float | None = None
    status: int = 500
    phase: str = "done"
    reason: str | None = None


class Inference:
    """Answers inference requests with the instances of this node."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        fleet: Fleet,
        files: InstanceFiles,
        pool: UpstreamPool,
        access: AgentAccess,
        bounds: Timeouts = BOUNDS,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._node_id = node_id
        self._fleet = fleet
        self._files = files
        self._pool = pool
        self._access = access
        self._bounds = bounds

    async def handle(self, request: InboundRequest, client: ClientStream) -> None:
        """Answer one request, or raise what the client is to be told."""
        record = _Record()
        try:
            await self._answer(request, client, record)
            record.status = client.status
        except RoleMeshError as err:
            record.status, record.reason = status_of(err), str(err)
            record.phase = _phase(record, client)
            raise
        except asyncio.CancelledError:
            record.status = CLIENT_CLOSED_REQUEST if client.client_gone else 503
            record.phase = _phase(record, client)
            raise
        finally:
            self._log(request, record)

    async def _answer(self, request: InboundRequest, client: ClientStream, record: _Record) -> None:
        principal = self._access.identify(request.peer, request.field)
        record.client = principal.name
        record.by_gateway = self._access.is_gateway(principal)
        body = RequestBody.parse(request.body)
        record.model_id = model_id = _named_model(body)
        self._access.check_model(principal, model_id)
        path = INFERENCE_PATHS[request.path]
        cost = body.slots(path.prompts_key)
        as_stream = streamed(path.upstream_path, body)
        wait_s = _load_wait_s(request)
        give_up_at = inf
        while True:
            lease = await self._fleet.lease(model_id, cost=cost, wait_s=wait_s)
            with lease:
                record.instance = lease.instance
                record.ready_at = now = self._loop.time()
                try:
                    if as_stream is None:
                        await self._relay(request, client, lease, record)
                    else:
                        await self._assemble(request, as_stream, client, lease, record)
                except ConnectFailed:
                    give_up_at = min(give_up_at, now + CRASH_NOTICE_S)
                    if now >= give_up_at:
                        raise
                else:
                    return
            # The llama-server is gone and the fleet is about to learn it. Nothing was sent: the
            # request then waits for the restart like any other.
            with contextlib.suppress(TimeoutError):
                await self._fleet.until_change(CRASH_NOTICE_S)

    async def _relay(
        self, request: InboundRequest, client: ClientStream, lease: Lease, record: _Record
    ) -> None:
        reply_fields = self._reply_fields(lease)
        result = await attempt(
            self._pool,
            self._address(lease),
            _outbound(request, request.body),
            client,
            bounds=self._bounds_of(request, by_gateway=record.by_gateway),
            reply_fields=lambda: reply_fields,
        )
        if isinstance(result, Refused):
            self._send(result.reply, client, lease, record)
        else:
            record.first_byte_at = result.first_byte_at

    async def _assemble(
        self,
        request: InboundRequest,
        as_stream: bytes,
        client: ClientStream,
        lease: Lease,
        record: _Record,
    ) -> None:
        """Answer a plain request with what llama-server streams."""
        collected = await collect(
            self._pool,
            self._address(lease),
            _outbound(request, as_stream),
            bounds=self._bounds_of(request, by_gateway=record.by_gateway),
        )
        record.first_byte_at = collected.first_byte_at
        self._send(collected.reply, client, lease, record)

    def _send(self, reply: Reply, client: ClientStream, lease: Lease, record: _Record) -> None:
        if reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            record.reason = "llama-server's own answer"
        all_fields = (*reply.fields, *self._reply_fields(lease))
        client.send(Reply(status=reply.status, body=reply.body, fields=all_fields))

    def _address(self, lease: Lease) -> UpstreamAddress:
        return UpstreamAddress.unix(str(self._files.socket(lease.instance)))

    def _bounds_of(self, request: InboundRequest, *, by_gateway: bool) -> Bounds:
        bounds = self._bounds
        if by_gateway:
            return Bounds(connect_s=bounds.connect_s, first_byte_s=inf, idle_s=inf, deadline=inf)
        return Bounds(
            connect_s=bounds.connect_s,
            first_byte_s=bounds.first_byte_s,
            idle_s=bounds.idle_s,
            deadline=request.received_at + bounds.total_s,
        )

    def _reply_fields(self, lease: Lease) -> Fields:
        return (
            ("X-RoleMesh-Node", self._node_id),
            ("X-RoleMesh-Instance", lease.instance),
            ("X-RoleMesh-Model", lease.model_id),
        )

    def _log(self, request: InboundRequest, record: _Record) -> None:
        def since_ms(moment: float | None) -> float | None:
            return None if moment is None else (moment - request.received_at) * 1000

        total_ms = (self._loop.time() - request.received_at) * 1000
        logger.info(
            "%s%s: %d in %.0f ms",
            quoted(record.model_id) if record.model_id else request.path,
            f" on {record.instance}" if record.instance else "",
            record.status,
            total_ms,
            extra=fields(
                request_id=request.request_id,
                status=record.status,
                client=record.client,
                path=request.path,
                phase=record.phase,
                node=self._node_id,
                model_id=record.model_id,
                instance=record.instance,
                queue_ms=since_ms(record.ready_at),
                first_byte_ms=since_ms(record.first_byte_at),
                total_ms=total_ms,
                reason=record.reason,
            ),
        )


def _phase(record: _Record, client: ClientStream) -> str:
    """Return how far a request came that did not come to its end."""
    if record.model_id is None:
        return "accept"
    if client.started:
        return "stream"
    return "queue" if record.instance is None else "upstream"


def _named_model(body: RequestBody) -> ModelId:
    if not body.model:
        msg = "the request names no model; a node serves models by their model_id"
        raise BadRequest(msg, param="model")
    return ModelId(body.model)


def _load_wait_s(request: InboundRequest) -> float:
    """Return how long the request may wait for its model, as the gateway says, but not for ever."""
    text = request.field(LOAD_WAIT_FIELD)
    if text is None:
        return BOUNDS.load_wait_s
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = nan
    if not wait_s >= 0:
        msg = f"X-RoleMesh-Load-Wait: expected seconds, found {text!r}"
        raise BadRequest(msg)
    return min(wait_s, BOUNDS.total_s)


def _outbound(request: InboundRequest, body: bytes) -> Outbound:
    lines: Fields = (
        ("Content-Type", "application/json"),
        ("X-Request-Id", request.request_id),
        ("Accept", request.field("accept") or "*/*"),
    )
    path = INFERENCE_PATHS[request.path].upstream_path
    return Outbound(path=path, fields=encode_fields(lines), body=body)
