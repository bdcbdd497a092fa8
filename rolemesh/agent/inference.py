"""The request path of a node: model_id -> ready instance -> slots -> relay -> record."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from http import HTTPStatus
from math import inf
from typing import Final

from rolemesh.address import UpstreamAddress
from rolemesh.agent.access import AgentAccess
from rolemesh.agent.batches import BATCHED_PATHS, ROUNDS, BatchError, Batches, in_batches
from rolemesh.agent.fleet import Fleet
from rolemesh.agent.instance_files import InstanceFiles
from rolemesh.agent.request_headers import (
    BOUNDS,
    INSTANCE_FIELD,
    LOAD_WAIT_FIELD,
    load_wait_s,
    reply_fields,
    reply_lines,
    request_lines,
)
from rolemesh.agent.slots import Lease
from rolemesh.agent.streaming import Streamed, streamed
from rolemesh.config.settings import Timeouts
from rolemesh.errors import BadRequest, ConnectFailed, UpstreamBroke
from rolemesh.names import InstanceName, ModelId, NodeId
from rolemesh.relay.attempt import attempt, request_head
from rolemesh.relay.choices import ChoicesAssembly
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.collect import Collection
from rolemesh.relay.edit import RequestBody
from rolemesh.relay.exchange import Ended, Exchange
from rolemesh.relay.job import Job
from rolemesh.relay.members import Buffer
from rolemesh.relay.paths import InferencePath, path_at
from rolemesh.relay.replies import JSON_TYPE, Reply
from rolemesh.relay.upstream import UpstreamPool
from rolemesh.runtime.keys import ANYONE, Principal
from rolemesh.runtime.log import quoted
from rolemesh.runtime.request_log import Labels, RequestLog, labels

CRASH_NOTICE_S: Final = 2.0
"""How long the end of a llama-server may take to become known, from the first failure on."""

_AS_IT_COMES: Final = partial(Collection, assembly=ChoicesAssembly)
"""Takes in an answer that is no stream."""


class Inference:
    """What every inference request of the node uses; calling it makes the job of one.

    `paths` may be replaced at any time.
    """

    def __init__(
        self,
        *,
        node_id: NodeId,
        fleet: Fleet,
        files: InstanceFiles,
        pool: UpstreamPool,
        access: AgentAccess,
        paths: Mapping[str, InferencePath],
        bounds: Timeouts = BOUNDS,
    ) -> None:
        self.clock = asyncio.get_running_loop().time
        self.node_id = node_id
        self.fleet = fleet
        self.pool = pool
        self.access = access
        self.paths = paths
        self.log = RequestLog("rolemesh.agent.inference")
        self.bounds_of_clients = bounds
        self.bounds_of_gateways = Timeouts(
            connect_s=bounds.connect_s, first_byte_s=inf, idle_s=inf, total_s=inf
        )
        self._files = files
        self._addresses: dict[InstanceName, UpstreamAddress] = {}

    def __call__(self, request: InboundRequest, client: ClientStream) -> "InferenceJob":
        """Return the job of a request."""
        return InferenceJob(self, request, client)

    def address(self, instance: InstanceName) -> UpstreamAddress:
        """Return where an instance listens."""
        address = self._addresses.get(instance)
        if address is None:
            called = f"llama-server {instance} of {self.node_id}"
            address = UpstreamAddress.unix(str(self._files.socket(instance)), called=called)
            self._addresses[instance] = address
        return address


class InferenceJob(Job):
    """One inference request."""

    _principal: Principal = ANYONE
    _model_id: ModelId | None = None
    _instance: InstanceName | None = None
    _prefer: InstanceName | None = None
    _lease: Lease | None = None
    _ready_at: float | None = None
    _first_byte_at = 0.0
    _as_stream: Streamed | None = None
    _is_failure = False

    def __init__(self, node: Inference, request: InboundRequest, client: ClientStream) -> None:
        super().__init__(request, client)
        self._node = node

    # -- the first attempt, without waiting ------------------------------------------------

    def start(self) -> Exchange | None:
        """Find out who asks for what, and begin the first attempt if nothing is in its way."""
        node, request = self._node, self.request
        access = node.access
        principal = self._principal = access.identify(request.peer, request.fields.get)
        body = RequestBody.parse(request.body)
        model_id = self._model_id = _named_model(body)
        access.check_model(principal, model_id)
        self._path = path_at(node.paths, request.path)
        self._cost = self._path.cost(body)
        self._as_stream = streamed(self._path.upstream_path, body)
        self._wait_s = load_wait_s(request.fields.get(LOAD_WAIT_FIELD))
        if INSTANCE_FIELD in request.fields:
            self._prefer = InstanceName(request.fields[INSTANCE_FIELD])
        by_gateway = access.is_gateway(principal)
        self._bounds = node.bounds_of_gateways if by_gateway else node.bounds_of_clients
        if self._cost > ROUNDS and self._path.upstream_path in BATCHED_PATHS:
            return None  # it may take several attempts
        lease = node.fleet.lease_now(model_id, cost=self._cost, prefer=self._prefer)
        if lease is None:
            return None
        connection = node.pool.take_idle(node.address(lease.instance))
        if connection is None:
            lease.release()
            return None
        self._hold(lease)
        kind = self._kind
        exchange = kind(
            node.pool,
            connection,
            self.client,
            timeouts=self._bounds,
            deadline=self._deadline(),
            added=reply_lines(node.node_id, lease.instance, model_id),
            on_over=self.exchange_over,
        )
        exchange.begin(*self._outbound(connection.address))
        return exchange

    def take(self, exchange: Exchange, ended: Ended) -> bool:
        """Take what came of the first attempt."""
        self.leave()
        if exchange.found_dead and isinstance(ended, UpstreamBroke):
            return False
        return self._settle(ended, exchange.first_byte_at)

    def leave(self) -> None:
        """Give back the slots of the attempt under way."""
        if self._lease is not None:
            self._lease.release()

    def _hold(self, lease: Lease) -> None:
        self._lease = lease
        self._instance = lease.instance
        self._ready_at = self._node.clock()

    # -- with all the waiting it takes -----------------------------------------------------

    async def go_on(self) -> None:
        """Lease, load and wait as often as it takes until the client is answered."""
        node, model_id = self._node, self._model_id
        assert model_id is not None
        give_up_at = inf
        while True:
            lease = await node.fleet.lease(
                model_id, cost=self._cost, wait_s=self._wait_s, prefer=self._prefer
            )
            with lease:
                self._hold(lease)
                now = node.clock()
                ended, first_byte_at = await self._attempt(lease)
            if not isinstance(ended, ConnectFailed):
                self._settle(ended, first_byte_at)
                return
            give_up_at = min(give_up_at, now + CRASH_NOTICE_S)
            if now >= give_up_at:
                raise ended
            # The llama-server is gone and the fleet is about to learn it. Nothing was sent: the
            # request then waits for the restart like any other.
            with contextlib.suppress(TimeoutError):
                await node.fleet.until_change(CRASH_NOTICE_S)

    async def _attempt(self, lease: Lease) -> tuple[Ended, float]:
        batches = self._batches()
        if batches is not None and batches.is_worth_it(lease.slots):
            return await self._attempt_in_batches(lease, batches)
        return await self._ask(lease, self._kind)

    async def _attempt_in_batches(self, lease: Lease, batches: Batches) -> tuple[Ended, float]:
        first_byte_at = 0.0
        for body in batches.bodies(lease.slots):
            ended, first_byte_at = await self._ask(lease, _AS_IT_COMES, body)
            if not isinstance(ended, Reply) or ended.status != HTTPStatus.OK:
                return ended, first_byte_at
            try:
                batches.add(ended.body)
            except BatchError as err:
                name = str(lease.instance)
                return UpstreamBroke(f"{name}: {err}", upstream=name), first_byte_at
            if batches.is_too_large:
                return await self._ask(lease, self._kind)
        return Reply(status=HTTPStatus.OK, body=batches.whole(), fields=(JSON_TYPE,)), first_byte_at

    async def _ask(
        self, lease: Lease, kind: Callable[..., Exchange], body: Buffer | None = None
    ) -> tuple[Ended, float]:
        node = self._node
        address = node.address(lease.instance)
        return await attempt(
            node.pool,
            address,
            self.client,
            self._outbound(address, body),
            timeouts=self._bounds,
            deadline=self._deadline(),
            added=reply_lines(node.node_id, lease.instance, lease.model_id),
            kind=kind,
        )

    def _batches(self) -> Batches | None:
        if self._cost <= ROUNDS:
            return None
        return in_batches(self._path.upstream_path, RequestBody.parse(self.request.body))

    # --------------------------------------------------------------------------------------

    def _settle(self, ended: Ended, first_byte_at: float) -> bool:
        """Take the end of an attempt; raises what the client is to be told."""
        self._first_byte_at = first_byte_at
        if isinstance(ended, Reply):
            self._is_failure = ended.status >= HTTPStatus.INTERNAL_SERVER_ERROR
            node, instance = self._node.node_id, self._instance
            assert instance is not None
            added = reply_fields(node, instance, self._model_id or ModelId(""))
            self.client.send(
                Reply(status=ended.status, body=ended.body, fields=(*ended.fields, *added))
            )
        elif ended is not None:
            raise ended
        return True

    def _outbound(
        self, address: UpstreamAddress, body: Buffer | None = None
    ) -> tuple[bytes, Buffer]:
        request = self.request
        if body is None:
            body = request.body if self._as_stream is None else self._as_stream.body
        lines = request_lines(request.fields.get("accept") or "*/*")
        head = request_head(address, self._path.upstream_path, lines, request.request_id, body)
        return head, body

    @property
    def _kind(self) -> Callable[..., Exchange]:
        asked = self._as_stream
        if asked is None:
            return Exchange
        return partial(Collection, assembly=asked.assembly)

    def _deadline(self) -> float:
        return self.request.received_at + self._bounds.total_s

    # -- its record ------------------------------------------------------------------------

    def phase(self) -> str:
        """Return how far the request came that did not come to its end."""
        if self._model_id is None:
            return "accept"
        if self.client.started:
            return "stream"
        return "queue" if self._instance is None else "upstream"

    def record(self, status: int, phase: str, reason: str | None) -> None:
        """Write the one record of the request."""
        request, received_at = self.request, self.request.received_at
        ready_at, first_byte_at = self._ready_at, self._first_byte_at
        if self._is_failure:
            reason = "llama-server's own answer"
        self._node.log.write(
            _labels(
                self._principal.name,
                request.path,
                self._node.node_id,
                self._model_id,
                self._instance,
            ),
            request.request_id,
            status,
            phase,
            total_ms=(self._node.clock() - received_at) * 1000,
            queue_ms=(ready_at - received_at) * 1000 if ready_at is not None else None,
            first_byte_ms=(first_byte_at - received_at) * 1000 if first_byte_at else None,
            reason=reason,
        )


def _named_model(body: RequestBody) -> ModelId:
    if not body.model:
        msg = "the request names no model; a node serves models by their model_id"
        raise BadRequest(msg, param="model")
    return ModelId(body.model)


@lru_cache(maxsize=1024)
def _labels(
    client: str, path: str, node: NodeId, model_id: ModelId | None, instance: InstanceName | None
) -> Labels:
    """Return what the record says besides figures: `qwen-coder on gpu0`."""
    what = quoted(model_id) if model_id else path
    return labels(
        f"{what} on {instance}" if instance else what,
        client=client,
        path=path,
        node=node,
        model_id=model_id,
        instance=instance,
    )
