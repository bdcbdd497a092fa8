"""How many requests a client key may have taken within a minute: a token bucket each; pure."""

from dataclasses import dataclass
from typing import Final

from rolemesh.errors import RateLimited
from rolemesh.runtime.keys import Principal

MINUTE_S: Final = 60.0


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class RequestRates:
    """The buckets of all keys with a bound; there are as many as such keys."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def take(self, principal: Principal, now: float) -> None:
        """Count a request; raises RateLimited when its key has had all it may have.

        A key that was silent for a minute may have a whole minute's requests at once.
        """
        bound = principal.requests_per_minute
        if bound is None:
            return
        bucket = self._buckets.get(principal.name)
        if bucket is None:
            bucket = self._buckets[principal.name] = _Bucket(float(bound), now)
        grown = (now - bucket.filled_at) * bound / MINUTE_S
        bucket.tokens = min(float(bound), bucket.tokens + grown)
        bucket.filled_at = now
        if bucket.tokens < 1.0:
            msg = (
                f"the key {principal.name} may have {bound} requests per minute "
                f"(auth.clients.{principal.name}.requests_per_minute)"
            )
            raise RateLimited(msg, retry_after_s=(1.0 - bucket.tokens) * MINUTE_S / bound)
        bucket.tokens -= 1.0
