"""GET /openapi.json: what may be asked of a gateway, as an OpenAPI 3.1 document.

`openapi.json` beside this module is written by hand; the tests hold it against the routes and
against what a gateway really answers. It says nothing that is special to one gateway, and so it is
told to anybody.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp import web

from rolemesh import __version__
from rolemesh.relay.application import route
from rolemesh.relay.replies import Reply, json_reply


@cache
def document() -> dict[str, Any]:
    """Return the document, which is not to be changed."""
    tree: dict[str, Any] = json.loads((Path(__file__).parent / "openapi.json").read_bytes())
    tree["info"]["version"] = __version__
    return tree


def openapi_route() -> web.RouteDef:
    """Return the route; the file is read here, because an upgrade may replace it later."""
    document()

    async def get_openapi(_request: web.Request) -> Reply:
        return json_reply(document())

    return route("GET", "/openapi.json", get_openapi)
