"""One inference request: who asks, what for, and its one record in the log at its end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from math import inf
from typing import TYPE_CHECKING

from rolemesh.errors import BadRequest, Cancelled, NotAllowed
from rolemesh.gateway.access import GatewayAccess
from rolemesh.gateway.admission import Admission, Claim
from rolemesh.gateway.dispatch import Dispatcher
from rolemesh.gateway.quotas import RequestRates
from rolemesh.gateway.routing_table import CandidateKey, Target, Warmth
from rolemesh.gateway.tables import RoutingTables
from rolemesh.gateway.trip import Trip
from rolemesh.names import Alias, Role
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.echo import EchoExchange
from rolemesh.relay.edit import RequestBody
from rolemesh.relay.exchange import Ended, Exchange
from rolemesh.relay.paths import InferencePath, path_at
from rolemesh.runtime.keys import ANYONE, Principal
from rolemesh.runtime.log import quoted
from rolemesh.runtime.request_log import Labels, RequestLog, labels

if TYPE_CHECKING:
    from rolemesh.relay.deadlines import Deadlines


@dataclass(slots=True, kw_only=True)
class Inference:
    """What every inference request of the gateway uses; calling it makes the job of one.

    `silent` are the streamed requests whose clients have had nothing yet.
    """

    access: GatewayAccess
    tables: RoutingTables
    admission: Admission
    dispatcher: Dispatcher
    rates: RequestRates
    silent: "Deadlines[InferenceJob]"
    paths: Mapping[str, InferencePath]
    log: RequestLog
    clock: Callable[[], float]

    def __call__(self, request: InboundRequest, client: ClientStream) -> "InferenceJob":
        """Return the job of a request."""
        return InferenceJob(self, request, client)


class InferenceJob(Trip):
    """One inference request; `due` is when its client has to hear of it again."""

    principal: Principal = ANYONE
    due: float

    def __init__(self, gateway: Inference, request: InboundRequest, client: ClientStream) -> None:
        super().__init__(request, client)
        self._gateway = gateway

    def start(self) -> Exchange | None:
        """Find out who asks for what, and begin the first attempt if nothing is in its way."""
        gateway, request = self._gateway, self.request
        principal = self.principal = gateway.access.clients.identify(
            request.peer, request.fields.get
        )
        path = path_at(gateway.paths, request.path)
        body = RequestBody.parse(request.body)
        alias = Alias(body.model or gateway.tables.current.default_model or "")
        if not alias:
            msg = "model is missing, and this gateway has no default_model"
            raise BadRequest(msg, param="model")
        if principal.roles is not None and alias not in principal.roles:
            msg = f"this key may not use the model '{alias}'"
            raise NotAllowed(msg)
        target = gateway.tables.target(alias)
        if principal.requests_per_minute is not None:
            gateway.rates.take(principal, request.received_at)
        self.role = target.role
        self.body = body
        self.path = path
        if target.echo_model:
            self.kind = partial(EchoExchange, name=alias)
        self.deadline = request.received_at + target.timeouts.total_s
        self.claim = Claim(
            alias, principal, _priority(target, principal), path.cost(body), request.received_at
        )
        self.alias = alias
        silent_s = target.timeouts.keepalive_after_s
        if body.stream and silent_s:
            self.due = request.received_at + silent_s
            gateway.silent.add(self)
        return gateway.dispatcher.begin(self, target, self.client, self.exchange_over)

    def take(self, exchange: Exchange, ended: Ended) -> bool:
        """Take what came of the first attempt."""
        return self._gateway.dispatcher.take(self, self.client, exchange, ended)

    async def go_on(self) -> None:
        """Answer the client, with all the waiting this takes."""
        await self._gateway.dispatcher.dispatch(self, self.client)

    def forget_body(self) -> None:
        """Let go of the request's body, and of the patience with its client: the answer begins."""
        super().forget_body()
        self.body.forget()
        self._gateway.silent.discard(self)

    def leave(self) -> None:
        """Give back the slots of the first attempt."""
        self._gateway.dispatcher.leave(self)

    # -- while it waits --------------------------------------------------------------------

    def check_time(self, now: float) -> None:
        """Tell the client of a stream that it is not forgotten."""
        target = self._target()
        silent_s = target.timeouts.keepalive_after_s if target is not None else 0.0
        self.due = now + silent_s if silent_s else inf
        self.client.comment(self.waits_for())

    def waits_for(self) -> str:
        """Return what the request waits for, in the words that its client is told."""
        waiting = self._gateway.admission.waiting()
        if self.claim in waiting:
            return f"queued, {waiting.index(self.claim)} before it"
        target, asked = self._target(), self.candidate
        if target is not None and asked is not None:
            for candidate in target.candidates:
                if candidate.key[:2] == asked.key[:2] and candidate.warmth is not Warmth.READY:
                    progress = candidate.progress
                    return "loading" if progress is None else f"loading {progress:.0%}"
        return "waiting for the first token"

    def _target(self) -> Target | None:
        return self._gateway.tables.current.targets.get(self.claim.alias)

    def withdraw_unless_allowed(self) -> None:
        """End the request if its key was taken away, or may not use this alias any more."""
        if not self._gateway.access.still_allows(self.principal, self.alias):
            self.cancel(Cancelled("the key of this request was taken away"))

    # -- its record ------------------------------------------------------------------------

    def phase(self) -> str:
        """Return how far the request has come."""
        if not self.alias:
            return "accept"
        if self.client.started:
            return "stream"
        return "queue" if self.claim.held is None and not self.attempts else "upstream"

    def record(self, status: int, phase: str, reason: str | None) -> None:
        """Write the one record of the request."""
        request, gateway = self.request, self._gateway
        received_at = request.received_at
        total_ms = (gateway.clock() - received_at) * 1000
        if not self.alias:
            of = labels(request.path, client=self.principal.name, path=request.path)
            gateway.log.write(
                of, request.request_id, status, phase, total_ms=total_ms, reason=reason
            )
            return
        if self.body.stream:
            gateway.silent.discard(self)
        first_byte_at = self.first_byte_at
        candidate = self.candidate
        gateway.log.write(
            _labels(
                self.principal.name,
                request.path,
                self.alias,
                self.role,
                candidate and candidate.key,
                self.claim.alias,
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


def _priority(target: Target, principal: Principal) -> int:
    """Return the class of a request: the alias's, but no higher than the key may have."""
    ceiling = principal.priority
    return target.priority if ceiling is None or ceiling < target.priority else ceiling


@lru_cache(maxsize=4096)
def _labels(  # noqa: PLR0917 - lru_cache is fastest with positions
    client: str,
    path: str,
    alias: Alias,
    role: Role | None,
    candidate: CandidateKey | None,
    tried: Alias,
) -> Labels:
    """Return what the record says besides figures: `coder -> qwen-coder on gpubox`.

    `tried` is the alias that was asked last: another one where it went on to a fallback.
    """
    what, (node, model, _) = quoted(alias), candidate or (None, None, None)
    return labels(
        f"{what} -> {quoted(model or alias)} on {node}" if node else what,
        client=client,
        path=path,
        alias=alias,
        fallback=tried if tried != alias else None,
        role=role,
        node=node,
        model_id=model,
    )
