"""Circuit breakers: a candidate that breaks again and again is left alone for a while; pure.

Only failures of the way there count (no connection, broken off, too late, 502 and the like); what
a candidate says, refusals of a request included, is a sign of life. An open breaker lets nothing
through until its time is over; then one request is its probe. It opens the longer the more often
that fails.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

OPENS_AT: Final = 3
"""So many failures in a row open a breaker."""

FIRST_REST_S: Final = 1.0
LONGEST_REST_S: Final = 30.0
MAX_KNOWN: Final = 4096
"""Of more candidates than that the longest known is forgotten."""

_K = TypeVar("_K", bound=Hashable)


@dataclass(slots=True)
class _Breaker:
    failures: int = 0
    open_until: float = 0.0


class Breakers(Generic[_K]):
    """The breakers of all candidates that have failed lately, and not succeeded since."""

    def __init__(self) -> None:
        self.known: dict[_K, _Breaker] = {}
        """All of them; for others only to see whether there are any."""
        self.open: set[_K] = set()
        """Those that let nothing through now; a live view."""

    def failed(self, key: _K, now: float) -> float | None:
        """Note a failure; returns when the breaker lets a probe through, None if it is closed."""
        if len(self.known) >= MAX_KNOWN and key not in self.known:
            self.answered(next(iter(self.known)))
        breaker = self.known.setdefault(key, _Breaker())
        breaker.failures += 1
        if breaker.failures < OPENS_AT:
            return None
        rest_s = min(LONGEST_REST_S, FIRST_REST_S * 2 ** min(breaker.failures - OPENS_AT, 10))
        breaker.open_until = now + rest_s
        self.open.add(key)
        return breaker.open_until

    def answered(self, key: _K) -> None:
        """Note a sign of life."""
        if key in self.known:
            del self.known[key]
            self.open.discard(key)

    def probing(self, key: _K, now: float) -> None:
        """Note that a request is sent: behind a breaker whose time is over it is the only one."""
        breaker = self.known.get(key)
        if breaker is not None and breaker.failures >= OPENS_AT and breaker.open_until <= now:
            self.open.add(key)

    def probe_over(self, key: _K, now: float) -> bool:
        """Let a request through if the time is over; tells whether that is so.

        To be called at that time, and before it is said what came of a request.
        """
        breaker = self.known.get(key)
        if breaker is not None and breaker.open_until > now:
            return False
        self.open.discard(key)
        return True

    def described(self, key: _K, now: float) -> str:
        """Return what people are told about a candidate's breaker."""
        breaker = self.known.get(key)
        if breaker is None:
            return "closed"
        if key in self.open:
            left = max(0.0, breaker.open_until - now)
            return f"open: failed {breaker.failures} times in a row, tried again in {left:.0f} s"
        return f"closed: failed {breaker.failures} times in a row"
