"""Waiting for a condition with a deadline: what every test uses in place of a fixed sleep."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

_T = TypeVar("_T")

FIRST_PAUSE_S = 0.002
LONGEST_PAUSE_S = 0.05
DEADLINE_S = 10.0


class StillNot(AssertionError):
    """What a test waited for did not come true before its deadline."""


@overload
async def eventually(
    condition: Callable[[], Awaitable[_T | None]], *, what: str, deadline_s: float = ...
) -> _T: ...


@overload
async def eventually(
    condition: Callable[[], _T | None], *, what: str, deadline_s: float = ...
) -> _T: ...


async def eventually(
    condition: Callable[[], Any], *, what: str, deadline_s: float = DEADLINE_S
) -> Any:
    """Return the first true result of `condition`, asked again and again for `deadline_s`.

    `what` completes the sentence "still not: ..." of the StillNot that is raised in the end.
    """
    end = time.monotonic() + deadline_s
    pause_s = FIRST_PAUSE_S
    while True:
        result = condition()
        value = await result if inspect.isawaitable(result) else result
        if value:
            return value
        if time.monotonic() > end:
            raise StillNot(_failure(what, deadline_s, value))
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def eventually_sync(
    condition: Callable[[], _T | None], *, what: str, deadline_s: float = DEADLINE_S
) -> _T:
    """Do what `eventually` does, blocking; for tests without an event loop."""
    end = time.monotonic() + deadline_s
    pause_s = FIRST_PAUSE_S
    while not (value := condition()):
        if time.monotonic() > end:
            raise StillNot(_failure(what, deadline_s, value))
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    return value


def _failure(what: str, deadline_s: float, last: object) -> str:
    return f"after {deadline_s:g} s still not: {what} (last result: {last!r})"
