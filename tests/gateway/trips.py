"""Trips of requests that nobody has sent."""

import asyncio
from collections.abc import Mapping

from rolemesh.gateway.admission import Claim
from rolemesh.gateway.trip import Trip
from rolemesh.names import Alias, RequestId
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.edit import RequestBody
from rolemesh.relay.exchange import Ended, Exchange
from rolemesh.relay.paths import INFERENCE_PATHS
from rolemesh.relay.replies import Reply
from rolemesh.runtime.keys import ANYONE


class TripAlone(Trip):
    """A trip of a job that does nothing of its own."""

    def start(self) -> Exchange | None:
        return None

    def take(self, exchange: Exchange, ended: Ended) -> bool:
        return True

    async def go_on(self) -> None:
        return

    def leave(self) -> None:
        return

    def record(self, status: int, phase: str, reason: str | None) -> None:
        return

    def phase(self) -> str:
        return ""


class Nobody:
    """The connection of a client that is never written to."""

    gone = False
    is_stalled = False
    keeps_alive = True

    def write(self, data: bytes) -> None:
        raise AssertionError(data)

    def write_reply(self, reply: Reply, request_id: RequestId) -> None:
        raise AssertionError(reply)

    def write_last(self, data: bytes) -> None:
        raise AssertionError(data)

    def reply_done(self) -> None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError

    def reset(self) -> None:
        raise AssertionError

    def set_source(self, source: asyncio.Transport | None) -> None:
        raise AssertionError


def trip_alone(path: str, body: bytes, fields: Mapping[str, str], received_at: float) -> TripAlone:
    """Return the trip of a request that asks for coder, and is nobody's."""
    request = InboundRequest(path, fields, body, "127.0.0.1", RequestId("id-1"), received_at)
    trip = TripAlone(request, ClientStream(Nobody(), request.request_id, 1))
    trip.alias = Alias("coder")
    trip.body = RequestBody.parse(body)
    trip.path = INFERENCE_PATHS[path]
    trip.claim = Claim(trip.alias, ANYONE, 1, 1, received_at)
    return trip
