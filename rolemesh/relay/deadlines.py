"""One timer for many: what waits says until when, and nothing is armed for each of it.

A relay has thousands of waits under way, nearly all of which end long before their time. A timer
for each would cost more than the wait; here a wait costs a comparison.
"""

import asyncio
from math import inf
from typing import Final, Generic, Protocol, TypeVar

_NOT_SOONER_S: Final = 0.01
"""Two looks at what waits are at least so far apart."""


class Timed(Protocol):
    """Something that waits until `due`, by the loop's clock."""

    due: float

    def check_time(self, now: float) -> None:
        """End the wait, or set a later `due`; called when `due` is over."""


_T = TypeVar("_T", bound=Timed)


class Deadlines(Generic[_T]):
    """Everything of one kind that waits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.items: set[_T] = set()
        self.discard = self.items.discard
        """Watches over an item no longer."""
        self.check_at = inf
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: _T) -> None:
        """Watch over an item; to be called again when its `due` comes nearer."""
        self.items.add(item)
        if item.due < self.check_at:
            self.arm(item.due)

    def arm(self, when: float) -> None:
        """See to it that somebody looks at that time, at the latest."""
        if self._timer is not None:
            self._timer.cancel()
        self.check_at = when
        self._timer = self._loop.call_at(when, self._check)

    def _check(self) -> None:
        self.check_at = inf
        self._timer = None
        now = self._loop.time()
        for item in tuple(self.items):
            if item.due <= now:
                item.check_time(now)
        earliest = min((item.due for item in self.items), default=inf)
        if earliest < self.check_at:
            self.arm(max(earliest, now + _NOT_SOONER_S))
