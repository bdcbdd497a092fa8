"""In which order waiting requests are served; pure.

1. By class: interactive before default before batch. But one slot in OUT_OF_TURN goes to whoever has
   waited longest, once that is AGE_S: so nobody waits for ever, and no backlog of a lower class holds
   up a higher one.
2. Within a class, fairly between client keys, by start-time fair queueing (P. Goyal, H. M. Vin,
   H. Cheng: "Start-time Fair Queuing", SIGCOMM 1996): a key that asks for much gets its turn as
   often as one that asks for little. What it asks for elsewhere does not count: each alias, and each
   class of it, has shares of its own.
3. By arrival.
"""

from collections.abc import Hashable, Iterable
from typing import Final

AGE_S: Final = 10.0
"""Who has waited so long may be served out of turn."""

OUT_OF_TURN: Final = 4
"""One slot in so many goes to whoever has waited longest."""

Place = tuple[int, float, float]
"""A request's place in the order; the smaller is served first."""


class FairShares:
    """Virtual time of the queue, and when the share of each client that it has had ends.

    A client is a key in one of the queues. What is remembered is forgotten when nobody waits any
    more.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._had_until: dict[Hashable, float] = {}

    def begun(self, before: Iterable[float]) -> float:
        """Return the virtual time of a queue, by the tags of those who wait there before."""
        return min(before, default=self._now)

    def tag(self, client: Hashable, cost: int, before: Iterable[float] = ()) -> float:
        """Return the start tag of a request that begins to wait behind those with these tags."""
        start = max(self.begun(before), self._had_until.get(client, 0.0))
        self._had_until[client] = start + max(cost, 1)
        return start

    def served(self, tag: float) -> None:
        """Note that the request with this tag is served now."""
        self._now = max(self._now, tag)

    def forget(self) -> None:
        """Forget everybody: the queue is empty."""
        self._now = 0.0
        self._had_until.clear()


def place(priority: int, tag: float, arrived_at: float) -> Place:
    """Return the place of a request of a class (see Priority) that waits since `arrived_at`."""
    return (priority, tag, arrived_at)


def goes_first(longest_s: float, served: int) -> bool:
    """Tell whether the next slot goes to who has waited longest; `served` have been before."""
    return longest_s >= AGE_S and served % OUT_OF_TURN == OUT_OF_TURN - 1
