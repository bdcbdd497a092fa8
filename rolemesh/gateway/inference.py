"""One inference request: who asks, what for, and its one record in the log at its end."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from rolemesh.errors import BadRequest, NotAllowed
from rolemesh.gateway.access import GatewayAccess
from rolemesh.gateway.dispatch import Dispatcher, Trip
from rolemesh.gateway.routing_table import CandidateKey
from rolemesh.gateway.tables import RoutingTables
from rolemesh.names import Alias, Role
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.edit import RequestBody
from rolemesh.relay.exchange import Ended, Exchange
from rolemesh.relay.job import Job
from rolemesh.relay.paths import INFERENCE_PATHS
from rolemesh.runtime.keys import ANYONE, Principal
from rolemesh.runtime.log import quoted
from rolemesh.runtime.request_log import Labels, RequestLog, labels


@dataclass(slots=True, kw_only=True)
class Inference:
    """What every inference request of the gateway uses; calling it makes the job of one."""

    access: GatewayAccess
    tables: RoutingTables
    dispatcher: Dispatcher
    log: RequestLog
    clock: Callable[[], float]

    def __call__(self, request: InboundRequest, client: ClientStream) -> "InferenceJob":
        """Return the job of a request."""
        return InferenceJob(self, request, client)


class InferenceJob(Job, Trip):
    """One inference request."""

    _principal: Principal = ANYONE

    def __init__(self, gateway: Inference, request: InboundRequest, client: ClientStream) -> None:
        self._gateway = gateway
        self.request = request
        self.client = client

    def start(self) -> Exchange | None:
        """Find out who asks for what, and begin the first attempt if nothing is in its way."""
        gateway, request = self._gateway, self.request
        principal = self._principal = gateway.access.clients.identify(
            request.peer, request.fields.get
        )
        path = INFERENCE_PATHS[request.path]
        body = RequestBody.parse(request.body)
        alias = Alias(body.model or gateway.tables.current.default_model or "")
        if not alias:
            msg = "model is missing, and this gateway has no default_model"
            raise BadRequest(msg, param="model")
        if principal.roles is not None and alias not in principal.roles:
            msg = f"this key may not use the model '{alias}'"
            raise NotAllowed(msg)
        target = gateway.tables.target(alias)
        self.cost = body.slots(path.prompts_key)
        self.role = target.role
        self.body = body
        self.path = path
        self.deadline = request.received_at + target.timeouts.total_s
        self.alias = alias
        return gateway.dispatcher.begin(self, target, self.client, self.exchange_over)

    def take(self, exchange: Exchange, ended: Ended) -> bool:
        """Take what came of the first attempt."""
        return self._gateway.dispatcher.take(self, self.client, exchange, ended)

    async def go_on(self) -> None:
        """Answer the client, with all the waiting this takes."""
        await self._gateway.dispatcher.dispatch(self, self.client)

    def forget_body(self) -> None:
        """Let go of the request's body."""
        super().forget_body()
        self.body.forget()

    def leave(self) -> None:
        """Give back the slots of the first attempt."""
        self._gateway.dispatcher.leave(self)

    def phase(self) -> str:
        """Return how far the request came that did not come to its end."""
        if not self.alias:
            return "accept"
        if self.client.started:
            return "stream"
        return "queue" if self.candidate is None else "upstream"

    def record(self, status: int, phase: str, reason: str | None) -> None:
        """Write the one record of the request."""
        request, gateway = self.request, self._gateway
        received_at = request.received_at
        total_ms = (gateway.clock() - received_at) * 1000
        if not self.alias:
            of = labels(request.path, client=self._principal.name, path=request.path)
            gateway.log.write(
                of, request.request_id, status, phase, total_ms=total_ms, reason=reason
            )
            return
        first_byte_at = self.first_byte_at
        candidate = self.candidate
        gateway.log.write(
            _labels(
                self._principal.name,
                request.path,
                self.alias,
                self.role,
                candidate and candidate.key,
            ),
            request.request_id,
            status,
            phase,
            total_ms=total_ms,
            attempts=self.attempts,
            queue_ms=self.queue_s * 1000,
            first_byte_ms=(first_byte_at - received_at) * 1000 if first_byte_at else None,
            reason=reason,
        )


@lru_cache(maxsize=4096)
def _labels(
    client: str, path: str, alias: Alias, role: Role | None, candidate: CandidateKey | None
) -> Labels:
    """Return what the record says besides figures: `coder -> qwen-coder on gpubox`."""
    what, (node, model) = quoted(alias), candidate or (None, None)
    return labels(
        f"{what} -> {quoted(model or alias)} on {node}" if node else what,
        client=client,
        path=path,
        alias=alias,
        role=role,
        node=node,
        model_id=model,
    )
