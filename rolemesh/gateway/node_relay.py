"""What an operator asks of a node, passed on to its agent: /v1/rolemesh/nodes/{node_id}/node/...

The agent is shown its own token, which only gateways know. What it answers goes back as it is: whole,
or line by line as a load goes on.
"""

import asyncio
import logging
from typing import Final
from urllib.parse import quote

from aiohttp import web

from rolemesh.errors import UnknownPath, UpstreamTimeout
from rolemesh.gateway.access import OPERATOR_PREFIX
from rolemesh.gateway.client_api import Identify
from rolemesh.gateway.registry import Node, Registry
from rolemesh.names import NodeId
from rolemesh.relay.application import LINES_TYPE, LineStream, lines_route, request_id_of
from rolemesh.relay.fetch import FetchStream, fetching
from rolemesh.relay.replies import Fields, Reply
from rolemesh.relay.response import ResponseHead, whole_reply
from rolemesh.runtime.keys import Principal
from rolemesh.runtime.log import fields

logger = logging.getLogger(__name__)

CONNECT_S: Final = 5.0
SILENCE_S: Final = 30.0
"""How long an agent may say nothing; while it loads a model it says something every second."""

WHOLE_S: Final = 3600.0
"""How long all of it may take."""

REPLY_BYTES: Final = 16 << 20

_PATH: Final = f"{OPERATOR_PREFIX}nodes/{{node_id}}/node"
_SENT_ON: Final = ("Accept", "Content-Type")


class NodeRelay:
    """Handlers; `identify` tells who calls, and raises for those who are no operators."""

    def __init__(
        self, registry: Registry, identify: Identify, *, silence_s: float = SILENCE_S
    ) -> None:
        self._registry = registry
        self._identify = identify
        self._silence_s = silence_s

    def routes(self) -> list[web.RouteDef]:
        """Return the paths of every node."""
        return [
            lines_route("GET", _PATH, self.relay),
            *(
                lines_route(method, f"{_PATH}/{{rest:.+}}", self.relay)
                for method in ("GET", "POST")
            ),
        ]

    async def relay(self, request: web.Request, lines: LineStream) -> Reply | None:
        """Pass a request on; the reply is the agent's, also its refusals."""
        by = self._identify(request)
        node_id, path = request.match_info["node_id"], _path_of(request)
        node = self._registry.nodes.get(NodeId(node_id))
        if node is None:
            msg = f"{node_id} is not registered here"
            raise UnknownPath(msg)
        if request.method != "GET":
            _log(request, path, by, node_id)
        silence_s = WHOLE_S if _answers_at_its_end(request, path) else self._silence_s
        asked = fetching(
            node.address,
            request.method,
            path,
            body=await request.read() if request.method == "POST" else None,
            fields=_fields(request, node),
            connect_s=CONNECT_S,
            limit_bytes=REPLY_BYTES,
        )
        try:
            async with asyncio.timeout(WHOLE_S), asked as stream:
                return await _pass_on(stream, lines, silence_s)
        except TimeoutError as err:
            msg = f"{node_id}: no reply within {silence_s:g} s"
            raise UpstreamTimeout(msg, upstream=node_id, limit="idle_s") from err


async def _pass_on(stream: FetchStream, lines: LineStream, silence_s: float) -> Reply | None:
    """Return the reply unless it is of lines; raises TimeoutError."""
    async with asyncio.timeout(silence_s) as patience:
        head = await stream.head()
        if not _is_lines(head):
            return whole_reply(head, b"".join([piece async for piece in stream.pieces()]))
        async for piece in stream.pieces():
            patience.reschedule(None)
            await lines.send(piece)
            patience.reschedule(asyncio.get_running_loop().time() + silence_s)
    return None


def _is_lines(head: ResponseHead) -> bool:
    return head.field(b"content-type").partition(b";")[0] == LINES_TYPE.encode()


def _answers_at_its_end(request: web.Request, path: str) -> bool:
    """Tell whether the agent says nothing before it has loaded a model: it was not asked to."""
    is_load = path.partition("?")[0].endswith("/load")
    return is_load and LINES_TYPE not in request.headers.get("Accept", "")


def _path_of(request: web.Request) -> str:
    """Return the agent's path with the query; no step of it may lead out of /v1/node."""
    steps = request.match_info.get("rest", "").split("/")
    if {".", ".."} & {*steps}:
        msg = f"there is no {request.path[:256]} here"
        raise UnknownPath(msg)
    path = "/".join(("/v1/node", *(quote(step, safe="") for step in steps if step)))
    query = request.rel_url.raw_query_string
    return f"{path}?{query}" if query else path


def _fields(request: web.Request, node: Node) -> Fields:
    sent_on = tuple(
        (name, value) for name in _SENT_ON if (value := request.headers.get(name)) is not None
    )
    key = node.report.api_key
    shown = (("Authorization", f"Bearer {key}"),) if key else ()
    return (("X-Request-Id", request_id_of(request)), *shown, *sent_on)


def _log(request: web.Request, path: str, by: Principal, node_id: str) -> None:
    extra = fields(node=node_id, client=by.name, request_id=request_id_of(request))
    logger.info("%s %s asked of %s by %s", request.method, path, node_id, by.name, extra=extra)
