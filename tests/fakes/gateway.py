"""A gateway's node side, small: it takes reports and answers as a test says."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from rolemesh.wire import NodeReport


class FakeGateway:
    """Keeps what nodes sent. `known` maps node_id to boot_id; `refusal` answers everything."""

    def __init__(self) -> None:
        self.url = ""
        self.reports: list[NodeReport] = []
        self.beats: list[dict[str, Any]] = []
        self.removed: list[str] = []
        self.keys: set[str | None] = set()
        self.known: dict[str, str] = {}
        self.refusal: tuple[int, str] | None = None
        self.refused = 0
        self.interval_s: float | None = None

    async def register(self, request: web.Request) -> web.Response:
        """POST /v1/nodes/register."""
        self._check(request)
        report = NodeReport.from_json(await request.json())
        self.known[report.node_id] = report.boot_id
        self.reports.append(report)
        return web.json_response(self._answer())

    async def beat(self, request: web.Request) -> web.Response:
        """POST /v1/nodes/{node_id}/heartbeat."""
        self._check(request)
        tree = await request.json()
        if self.known.get(request.match_info["node_id"]) != tree["boot_id"]:
            raise web.HTTPNotFound
        self.beats.append(tree)
        return web.json_response(self._answer())

    async def remove(self, request: web.Request) -> web.Response:
        """DELETE /v1/nodes/{node_id}."""
        self._check(request)
        self.removed.append(request.match_info["node_id"])
        return web.json_response({})

    def _answer(self) -> dict[str, float]:
        return {} if self.interval_s is None else {"heartbeat_interval_s": self.interval_s}

    def _check(self, request: web.Request) -> None:
        self.keys.add(request.headers.get("Authorization"))
        if self.refusal is not None:
            self.refused += 1
            status, message = self.refusal
            raise _Refusal(status, message)


class _Refusal(web.HTTPException):
    def __init__(self, status: int, message: str) -> None:
        self.status_code = status
        super().__init__(
            text=f'{{"error": {{"message": "{message}"}}}}', content_type="application/json"
        )


@asynccontextmanager
async def fake_gateway(
    gateway: FakeGateway, *, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[FakeGateway]:
    """Serve a gateway on loopback; its `url` then says where."""
    app = web.Application()
    app.add_routes(
        [
            web.post("/v1/nodes/register", gateway.register),
            web.post("/v1/nodes/{node_id}/heartbeat", gateway.beat),
            web.delete("/v1/nodes/{node_id}", gateway.remove),
        ]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
        scheme = "http" if tls is None else "https"
        gateway.url = f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
        yield gateway
    finally:
        await runner.cleanup()
