"""The glossary as types. Every word has one meaning in code, config keys, JSON, journal fields and prose.

alias     what the client sends in `model`; resolves to a role or to a static upstream, never to another alias
role      the capability routed on, announced by nodes (coder, embedder)
model_id  one set of weights, as the node that holds them names it
target    outcome of resolving an alias: which role or which static upstream answers it
upstream  an address the gateway (or the agent) can send requests to
candidate an upstream and the model_id it would serve for this request, now
attempt   one try at one candidate; request: one call of a client, holder of the request_id
slot      one unit of parallel decoding; lease: a held slot
node      a host that runs an agent; boot_id: a new value at each start of that agent
instance  one managed llama-server (`gpu0`, `gpu0-embed`, `cpu0`); unit: its systemd unit
inventory what a node has; reading: one sample of it; report: what a node sends to a gateway
desired   what the settings ask for; observed: what was last seen
drain     accept nothing new, finish what runs
principal who a key belongs to
"""

import re
import secrets
from collections.abc import Callable, Iterator
from typing import NewType

Alias = NewType("Alias", str)
Role = NewType("Role", str)
ModelId = NewType("ModelId", str)
NodeId = NewType("NodeId", str)
InstanceName = NewType("InstanceName", str)
RequestId = NewType("RequestId", str)

INSTANCE_PATTERN = r"(?:gpu|cpu)(?:0|[1-9][0-9]{0,2})(?:-[a-z0-9]{1,24})?"
NODE_ID_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62})"
REQUEST_ID_PATTERN = r"[A-Za-z0-9._:-]{1,128}"

_ID_BYTES = 12
_IDS_AT_ONCE = 256
_INSTANCE = re.compile(INSTANCE_PATTERN)
_REQUEST_ID = re.compile(REQUEST_ID_PATTERN)


def parse_instance(text: str) -> InstanceName:
    """Return `text` as an instance name; raises ValueError if it is not one."""
    if not _INSTANCE.fullmatch(text):
        msg = f"{text!r} is not an instance name (expected gpuN, gpuN-NAME or cpuN)"
        raise ValueError(msg)
    return InstanceName(text)


def parse_request_id(text: str) -> RequestId | None:
    """Return a client's own request id if it is safe to log and to send on, else None."""
    return RequestId(text) if _REQUEST_ID.fullmatch(text) else None


def _request_ids() -> Iterator[RequestId]:
    """Yield fresh ids; the system is asked for randomness once for many."""
    while True:
        digits = secrets.token_hex(_ID_BYTES * _IDS_AT_ONCE)
        for start in range(0, len(digits), 2 * _ID_BYTES):
            yield RequestId("req-" + digits[start : start + 2 * _ID_BYTES])


new_request_id: Callable[[], RequestId] = _request_ids().__next__
"""Returns a fresh, unguessable request id."""
