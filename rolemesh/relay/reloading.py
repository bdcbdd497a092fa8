"""What operators are answered who have a daemon reload: that it is done, or all that is wrong."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from rolemesh.config.settings import GatewaySettings, NodeSettings
from rolemesh.config.store import ConfigStore
from rolemesh.errors import ConfigError, Problem
from rolemesh.relay.application import request_id_of
from rolemesh.relay.replies import Reply, json_reply
from rolemesh.runtime.successor import Successor

RELOAD_PATH: Final = "/v1/rolemesh/reload"

Reload = Callable[[], Awaitable[Successor | None]]
"""Reloads, and returns the process that has taken over, if one has; raises ConfigError to refuse."""


async def reload_reply(
    request: web.Request,
    reload: Reload,
    store: ConfigStore[GatewaySettings] | ConfigStore[NodeSettings],
) -> Reply:
    """Reload, and tell what came of it."""
    try:
        successor = await reload()
    except ConfigError as err:
        return json_reply(_refusal(err, request), HTTPStatus.UNPROCESSABLE_ENTITY)
    if successor is not None:
        process = {"pid": successor.pid, "version": successor.version}
        tree = {"status": "reloaded", "generation": 1, "warnings": [], "process": process}
        return json_reply(tree)
    warnings = [_problem(each) for each in store.loaded.warnings]
    tree = {"status": "reloaded", "generation": store.generation, "warnings": warnings}
    return json_reply(tree)


def _refusal(error: ConfigError, request: web.Request) -> dict[str, Any]:
    return {
        "error": {
            "message": "the configuration is refused, the one before it stays in force",
            "type": "invalid_request_error",
            "param": None,
            "code": "config_refused",
            "status": HTTPStatus.UNPROCESSABLE_ENTITY.value,
            "request_id": request_id_of(request),
            "problems": [_problem(each) for each in error.problems],
        }
    }


def _problem(problem: Problem) -> dict[str, str]:
    return {"where": problem.where, "key": problem.key, "message": problem.message}
