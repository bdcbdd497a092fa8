"""One request over a UNIX socket."""

from pathlib import Path
from typing import Any

import aiohttp


async def ask_at(socket: Path, method: str, path: str, **options: Any) -> tuple[int, Any]:
    """Return the status and the body of a reply, read as what it says it is."""
    connector = aiohttp.UnixConnector(path=str(socket))
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        http.request(method, f"http://localhost{path}", **options) as reply,
    ):
        is_json = reply.content_type == "application/json"
        return reply.status, await (reply.json() if is_json else reply.text())
