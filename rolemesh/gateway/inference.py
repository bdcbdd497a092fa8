"""One inference request: who asks, what for, and its one record in the log at its end."""

import asyncio
import logging

from rolemesh.errors import BadRequest, NotAllowed, RoleMeshError
from rolemesh.gateway.access import GatewayAccess
from rolemesh.gateway.dispatch import Dispatcher, Trip
from rolemesh.gateway.tables import RoutingTables
from rolemesh.names import Alias
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.edit import RequestBody
from rolemesh.relay.paths import INFERENCE_PATHS
from rolemesh.relay.replies import CLIENT_CLOSED_REQUEST, status_of
from rolemesh.runtime.keys import ANYONE, Principal
from rolemesh.runtime.log import fields

logger = logging.getLogger(__name__)


class Inference:
    """Handles every inference request of the gateway."""

    def __init__(
        self,
        *,
        access: GatewayAccess,
        tables: RoutingTables,
        dispatcher: Dispatcher,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._access = access
        self._tables = tables
        self._dispatcher = dispatcher

    async def handle(self, request: InboundRequest, client: ClientStream) -> None:
        """Answer one request; raises what the client is to be told."""
        principal, trip, status, reason = ANYONE, None, 500, None
        try:
            principal = self._access.clients.identify(request.peer, request.field)
            trip = self._trip(request, principal)
            await self._dispatcher.dispatch(trip, client)
            status = client.status
        except RoleMeshError as err:
            status, reason = status_of(err), str(err)
            raise
        except asyncio.CancelledError:
            status = CLIENT_CLOSED_REQUEST if client.client_gone else 503
            raise
        finally:
            self._record(request, principal, trip, status, reason)

    def _trip(self, request: InboundRequest, principal: Principal) -> Trip:
        path = INFERENCE_PATHS[request.path]
        body = RequestBody.parse(request.body)
        alias = Alias(body.model or self._tables.current.default_model or "")
        if not alias:
            msg = "model is missing, and this gateway has no default_model"
            raise BadRequest(msg, param="model")
        if principal.roles is not None and alias not in principal.roles:
            msg = f"this key may not use the model '{alias}'"
            raise NotAllowed(msg)
        target = self._tables.target(alias)
        return Trip(
            alias=alias,
            inbound=request,
            body=body,
            path=path,
            cost=body.slots(path.prompts_key),
            deadline=request.received_at + target.timeouts.total_s,
        )

    def _record(
        self,
        request: InboundRequest,
        principal: Principal,
        trip: Trip | None,
        status: int,
        reason: str | None,
    ) -> None:
        took = self._loop.time() - request.received_at
        candidate = trip.candidate if trip is not None else None
        first_byte_at = trip.first_byte_at if trip is not None else 0.0
        logger.info(
            "request %s",
            "answered" if status < 400 else "failed",
            extra=fields(
                request_id=request.request_id,
                status=status,
                client=principal.name,
                path=request.path,
                alias=trip and trip.alias,
                node=candidate and candidate.upstream.name,
                model_id=candidate and candidate.model,
                attempts=trip and trip.attempts,
                queue_ms=trip and trip.queue_s * 1000,
                first_byte_ms=(first_byte_at - request.received_at) * 1000
                if first_byte_at
                else None,
                total_ms=took * 1000,
                reason=reason,
            ),
        )
