"""What the programs in Python share: where to ask, what to ask, and how results are printed."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

URL = os.environ["CLIENT_URL"]  # without /v1
KEY = os.environ["CLIENT_KEY"]
MODEL = os.environ["CLIENT_MODEL"]
EMBEDDINGS_URL = os.environ["CLIENT_EMBEDDINGS_URL"]
EMBEDDINGS_MODEL = os.environ["CLIENT_EMBEDDINGS_MODEL"]
ENDLESS_URL = os.environ["CLIENT_ENDLESS_URL"]
ENDLESS_MODEL = os.environ["CLIENT_ENDLESS_MODEL"]

QUESTION = "How warm is it in Paris and Rome?"
WEATHER = {"Paris": 21, "Rome": 25}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOO_LONG = "hello " * 10_000

Check = Callable[[], Awaitable[Any]]


def run(*checks: Check) -> None:
    """Run the checks (those named on the command line, if any are) and print their results."""
    names = sys.argv[1:]
    chosen = [check for check in checks if not names or check.__name__ in names]
    json.dump(asyncio.run(_results(chosen)), sys.stdout, default=_as_json)


def _as_json(value: Any) -> Any:
    return value.model_dump(mode="json", warnings=False)


async def _results(checks: list[Check]) -> dict[str, Any]:
    return {check.__name__: await _result(check) for check in checks}


async def _result(check: Check) -> Any:
    try:
        return await check()
    except Exception as error:  # noqa: BLE001 (whatever the client raises is a result)
        return {
            "raised": type(error).__name__,
            "status": getattr(error, "status_code", None),
            "code": getattr(error, "code", None),
            "message": str(error),
        }
