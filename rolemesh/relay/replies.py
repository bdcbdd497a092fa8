"""Errors as HTTP replies, in OpenAI's or Anthropic's shape: the only map from the error tree to HTTP."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from rolemesh import errors
from rolemesh.names import RequestId
from rolemesh.relay.headers import encode_fields, status_line

Fields = tuple[tuple[str, str], ...]

CLIENT_CLOSED_REQUEST = 499
"""The status recorded when the client left before its answer was whole; it is never sent."""

JSON_TYPE = ("Content-Type", "application/json; charset=utf-8")


class Dialect(Enum):
    """Whose API a request speaks, and so in whose shape its errors are.

    OPENAI: `{"error": {...}}`; in a stream a `data:` event of that.
    ANTHROPIC: `{"type": "error", "error": {...}, "request_id": ...}`; in a stream `event: error`
    (Anthropic's API reference, "Errors" and "Streaming messages").
    """

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole HTTP reply; Content-Length, Connection and X-Request-Id are added on sending."""

    status: int
    body: bytes
    fields: Fields = (JSON_TYPE,)


def json_reply(tree: Any, status: int = HTTPStatus.OK) -> Reply:
    """Return a reply with a JSON body."""
    return Reply(status=status, body=_encoded(tree))


def reply_bytes(reply: Reply, request_id: RequestId, *, keep_alive: bool) -> bytes:
    """Return a whole reply as it is written to a client."""
    fields: Fields = (
        *reply.fields,
        ("Content-Length", str(len(reply.body))),
        ("X-Request-Id", request_id),
        ("Connection", "keep-alive" if keep_alive else "close"),
    )
    return status_line(reply.status) + encode_fields(fields) + b"\r\n" + reply.body


def own_fields(request_id: RequestId, dialect: Dialect) -> Fields:
    """Return the headers that every reply in a dialect has on top of X-Request-Id."""
    # By this name Anthropic's clients look for it.
    return (("Request-Id", request_id),) if dialect is Dialect.ANTHROPIC else ()


def status_of(error: errors.RoleMeshError) -> int:
    """Return the HTTP status of an error."""
    return _shape(error)[0]


def error_object(
    error: errors.RoleMeshError, request_id: RequestId, dialect: Dialect = Dialect.OPENAI
) -> dict[str, Any]:
    """Return an error as the clients of an API read it.

    Besides what that API has it says `code`, `status`, `request_id` and, where there is one, the
    machine-readable `reason`, all inside `error`.
    """
    status, kind, code = _shape(error)
    tree: dict[str, Any] = {
        "message": str(error),
        "type": kind,
        "param": error.param if isinstance(error, errors.BadRequest) else None,
        "code": code,
        "status": status,
        "request_id": request_id,
    }
    if isinstance(error, errors.Unavailable):
        tree["reason"] = error.reason
    if isinstance(error, errors.UnknownAlias):
        tree["param"] = "model"
    if isinstance(error, errors.UpstreamTimeout):
        tree["timeout"] = error.limit
    if dialect is Dialect.OPENAI:
        return {"error": tree}
    tree["type"] = _ANTHROPIC_TYPES.get(status, "api_error")
    return {"type": "error", "error": tree, "request_id": request_id}


def error_reply(
    error: errors.RoleMeshError, request_id: RequestId, dialect: Dialect = Dialect.OPENAI
) -> Reply:
    """Return the whole reply for an error."""
    fields: Fields = (JSON_TYPE,)
    if isinstance(error, errors.CapacityError):
        fields += (("Retry-After", str(max(1, math.ceil(error.retry_after_s)))),)
    if isinstance(error, errors.MethodNotAllowed):
        fields += (("Allow", ", ".join(error.allowed)),)
    if isinstance(error, errors.NotAuthenticated):
        fields += (("WWW-Authenticate", 'Bearer realm="rolemesh"'),)
    body = _encoded(error_object(error, request_id, dialect))
    return Reply(status=status_of(error), body=body, fields=fields)


def error_event(
    error: errors.RoleMeshError, request_id: RequestId, dialect: Dialect = Dialect.OPENAI
) -> bytes:
    """Return the error as an SSE event, for a stream whose head has already been sent.

    The leading blank line ends an event that broke off in the middle.
    """
    name = b"event: error\n" if dialect is Dialect.ANTHROPIC else b""
    return b"\n\n%bdata: %b\n\n" % (name, _encoded(error_object(error, request_id, dialect)))


def refusal_event(reply: Reply, dialect: Dialect = Dialect.OPENAI) -> bytes:
    """Return an upstream's refusal as an SSE event, for a stream whose head has been sent."""
    try:
        tree = json.loads(reply.body)
        tree["error"].setdefault("status", reply.status)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        text = reply.body.decode(errors="replace")
        tree = {"error": {"message": text, "type": "upstream_error", "status": reply.status}}
    if dialect is Dialect.ANTHROPIC:
        tree["type"] = "error"
    name = b"event: error\n" if dialect is Dialect.ANTHROPIC else b""
    return b"\n\n%bdata: %b\n\n" % (name, _encoded(tree))


def _encoded(tree: Any) -> bytes:
    # ASCII: what a client sent, and an error repeats, may hold a surrogate that UTF-8 cannot.
    return json.dumps(tree).encode("ascii")


_SHAPES: tuple[tuple[type[errors.RoleMeshError], int, str, str], ...] = (
    (errors.NotAuthenticated, 401, "authentication_error", "invalid_api_key"),
    (errors.NotAllowed, 403, "permission_error", "not_allowed"),
    (errors.UnknownAlias, 404, "invalid_request_error", "model_not_found"),
    (errors.UnknownInstance, 404, "invalid_request_error", "unknown_instance"),
    (errors.UnknownPath, 404, "invalid_request_error", "unknown_path"),
    (errors.MethodNotAllowed, 405, "invalid_request_error", "method_not_allowed"),
    (errors.BodyTooLarge, 413, "invalid_request_error", "body_too_large"),
    (errors.HeadTooLarge, 431, "invalid_request_error", "head_too_large"),
    (errors.RequestTooSlow, 408, "invalid_request_error", "request_too_slow"),
    (errors.RequestError, 400, "invalid_request_error", "bad_request"),
    (errors.QueueFull, 429, "rate_limit_error", "queue_full"),
    (errors.QueueTimeout, 429, "rate_limit_error", "queue_timeout"),
    (errors.RateLimited, 429, "rate_limit_error", "rate_limited"),
    (errors.SlotsBusy, 503, "unavailable_error", "slots_busy"),
    (errors.CapacityError, 503, "unavailable_error", "unavailable"),
    (errors.Cancelled, 503, "unavailable_error", "cancelled"),
    (errors.ConnectFailed, 502, "upstream_error", "connect_failed"),
    (errors.UpstreamTimeout, 504, "upstream_error", "upstream_timeout"),
    (errors.RequestCrashesUpstream, 502, "upstream_error", "request_crashes_upstream"),
    (errors.UpstreamError, 502, "upstream_error", "upstream_broke"),
)

# Anthropic's name for each status; 529, its own for an overload, is 503 here.
_ANTHROPIC_TYPES: Mapping[int, str] = MappingProxyType(
    {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        405: "invalid_request_error",
        408: "invalid_request_error",
        413: "request_too_large",
        429: "rate_limit_error",
        431: "request_too_large",
        503: "overloaded_error",
        504: "timeout_error",
    }
)


def _shape(error: errors.RoleMeshError) -> tuple[int, str, str]:
    for kind, status, error_type, code in _SHAPES:
        if isinstance(error, kind):
            return status, error_type, code
    return 500, "server_error", "internal_error"
