"""The headers of an inference request that the agent reads, and those that it writes; pure."""

from functools import lru_cache
from math import nan
from typing import Final

from rolemesh.config.settings import Timeouts
from rolemesh.errors import BadRequest
from rolemesh.names import InstanceName, ModelId, NodeId
from rolemesh.relay.headers import encode_fields

BOUNDS: Final = Timeouts()
"""What bounds direct clients. A gateway brings its own and leaves when they are over."""

LOAD_WAIT_FIELD: Final = "x-rolemesh-load-wait"
"""How long a request may wait for its model, in seconds."""

INSTANCE_FIELD: Final = "x-rolemesh-instance"
"""Names the instance that is to answer if it can: it holds what the request begins with."""


@lru_cache(maxsize=256)
def load_wait_s(text: str | None) -> float:
    """Return how long a request may wait for its model, as the gateway says, but not for ever."""
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


@lru_cache(maxsize=256)
def request_lines(accept: str) -> bytes:
    """Return header lines for llama-server."""
    return encode_fields((("Content-Type", "application/json"), ("Accept", accept)))


def reply_fields(
    node: NodeId, instance: InstanceName, model_id: ModelId
) -> tuple[tuple[str, str], ...]:
    """Return the headers that tell who answered."""
    return (
        ("X-RoleMesh-Node", node),
        ("X-RoleMesh-Instance", instance),
        ("X-RoleMesh-Model", model_id),
    )


@lru_cache(maxsize=256)
def reply_lines(node: NodeId, instance: InstanceName, model_id: ModelId) -> bytes:
    """Return the same as header lines."""
    return encode_fields(reply_fields(node, instance, model_id))
