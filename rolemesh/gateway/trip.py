"""One request on its way through the gateway, and how it is put to a candidate; pure."""

import json
from collections.abc import Callable
from http import HTTPStatus

from rolemesh.errors import UpstreamError
from rolemesh.gateway.admission import Claim
from rolemesh.gateway.affinity import Chain, Preference
from rolemesh.gateway.routing_table import Candidate, CandidateKey, Target
from rolemesh.names import Alias, Role
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.edit import RequestBody
from rolemesh.relay.exchange import Exchange
from rolemesh.relay.headers import accept_line, encode_fields, start_line
from rolemesh.relay.job import Job
from rolemesh.relay.paths import InferencePath
from rolemesh.relay.replies import Fields, Reply


class Trip(Job):
    """One request on its way; filled in as it goes, and read for its record in the log.

    `alias` is what the client asks for, "" until that is known; those below it are set with it.
    `claim.alias` is the one tried now, another one for a fallback. `attempt_at` is when the attempt
    under way began, 0 for one that began as the request came. `chain` is that of its conversation,
    looked at once where there is a choice; `new_bytes` of it are new to the candidate.
    `looks_again`: the queue is to be looked at when it has waited long, and at `wakes_at`. `kind` makes the exchanges
    of its attempts.
    """

    alias: Alias = Alias("")
    role: Role | None
    body: RequestBody
    path: InferencePath
    claim: Claim
    deadline: float
    candidate: Candidate | None = None
    attempts = 0
    attempt_at = 0.0
    sent = 0
    queue_s = 0.0
    first_byte_at = 0.0
    failed: frozenset[CandidateKey] = frozenset()
    chain: Chain | None = None
    preference: Preference | None = None
    new_bytes = 0
    looks_again = False
    wakes_at = 0.0
    failure: UpstreamError | Reply | None
    kind: Callable[..., Exchange] = Exchange

    def __init__(self, request: InboundRequest, client: ClientStream) -> None:
        super().__init__(request, client)
        self.failure = None


def outbound(trip: Trip, candidate: Candidate, target: Target) -> tuple[bytes, bytes]:
    """Return head and body of the request as it is sent to a candidate."""
    upstream, request = candidate.upstream, trip.request
    accept = request.fields.get("accept")
    body = trip.body.rewritten(candidate.model, target.default_members)
    head = b"%b%b%b%bX-Request-Id: %b\r\nContent-Length: %d\r\n\r\n" % (
        start_line(upstream.address.prefix, trip.path.upstream_path),
        candidate.request_lines,
        target.load_wait_line if upstream.node_id is not None else b"",
        accept_line(accept) if accept else b"",
        request.request_id.encode(),
        len(body),
    )
    return head, body


def reply_fields(trip: Trip, candidate: Candidate) -> Fields:
    """Return the headers that tell who answered, and how that came."""
    hop = trip.claim.alias
    return (
        ("X-RoleMesh-Node", candidate.upstream.name),
        ("X-RoleMesh-Model", " ".join((candidate.model or hop).split())),
        *((("X-RoleMesh-Fallback", hop),) if hop != trip.alias else ()),
        ("X-RoleMesh-Attempts", str(trip.attempts)),
        ("X-RoleMesh-Queue-Ms", f"{trip.queue_s * 1000:.0f}"),
    )


def reply_lines(trip: Trip, candidate: Candidate) -> bytes:
    """Return the same as whole header lines."""
    if trip.claim.alias != trip.alias or not candidate.model:
        return encode_fields(reply_fields(trip, candidate))
    return b"%bX-RoleMesh-Attempts: %d\r\nX-RoleMesh-Queue-Ms: %.0f\r\n" % (
        candidate.reply_lines,
        trip.attempts,
        trip.queue_s * 1000,
    )


def is_slots_busy(reply: Reply) -> bool:
    """Tell whether a node says that all its slots are taken."""
    return _code(reply) == "slots_busy"


def is_crash(reply: Reply) -> bool:
    """Tell whether a node says that its llama-server was gone before the first byte."""
    return reply.status == HTTPStatus.BAD_GATEWAY and _code(reply) == "upstream_broke"


def _code(reply: Reply) -> object:
    try:
        return json.loads(reply.body)["error"]["code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
