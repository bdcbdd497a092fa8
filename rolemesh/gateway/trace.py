"""What became of one request, here and on the nodes: everybody's last records of it."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from rolemesh import jsonread
from rolemesh.errors import UpstreamError
from rolemesh.gateway.registry import Node, Registry
from rolemesh.names import NodeId
from rolemesh.relay.fetch import fetch
from rolemesh.runtime.request_history import RequestHistory

NODE_TIMEOUT_S: Final = 2.0
"""How long a node may take to answer."""

AT_ONCE: Final = 64
"""How many nodes are asked at the same time."""

WHOLE_TIMEOUT_S: Final = 5.0
"""How long all of them may take together."""

SOURCE: Final = "gateway"
"""Stands for this gateway among the node ids."""

_Records = list[Mapping[str, Any]]


class _NoAnswer(Exception):
    """A node did not tell; the text says why."""


class Trace:
    """Asks the history of this gateway and those of the nodes."""

    def __init__(self, *, registry: Registry, history: RequestHistory) -> None:
        self._registry = registry
        self._history = history

    async def of(self, request_id: str) -> dict[str, Any]:
        """Return `records`, in the order of their ends, and which nodes are `unreachable`."""
        records = [_record(SOURCE, each) for each in self._history.find(request_id)]
        unreachable: list[dict[str, str]] = []
        gate = asyncio.Semaphore(AT_ONCE)
        end = asyncio.get_running_loop().time() + WHOLE_TIMEOUT_S

        async def ask(node_id: NodeId, node: Node) -> None:
            try:
                async with asyncio.timeout_at(end), gate:
                    found = await _ask(node, request_id)
            except (_NoAnswer, UpstreamError, TimeoutError) as err:
                reason = str(err) or f"not asked within {WHOLE_TIMEOUT_S:g} s"
                unreachable.append({"node_id": node_id, "reason": reason})
            else:
                records.extend(_record(node_id, each) for each in found)

        await asyncio.gather(*(ask(*each) for each in self._registry.nodes.items()))
        return {
            "request_id": request_id,
            "records": sorted(records, key=lambda each: str(each["fields"].get("at", ""))),
            "unreachable": sorted(unreachable, key=lambda each: each["node_id"]),
        }


def _record(source: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"source": source, "fields": fields}


async def _ask(node: Node, request_id: str) -> _Records:
    """Return what a node remembers; raises UpstreamError or _NoAnswer."""
    key = node.report.api_key
    reply = await fetch(
        node.address,
        "GET",
        f"/v1/node/requests/{quote(request_id, safe='')}",
        fields=(("Authorization", f"Bearer {key}"),) if key else (),
        timeout_s=NODE_TIMEOUT_S,
    )
    if reply.status != 200:
        msg = f"answers {reply.status}: it may be older, or no RoleMesh node"
        raise _NoAnswer(msg)
    try:
        return list(jsonread.get_objects(jsonread.as_object(json.loads(reply.body)), "records"))
    except (ValueError, RecursionError) as err:
        msg = f"its answer cannot be read: {err}"
        raise _NoAnswer(msg) from err
