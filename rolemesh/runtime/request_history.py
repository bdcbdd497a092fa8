"""The last requests that ended here, for whoever asks what became of one, and for who counts them.

What a request adds is one slice of a flat list: no object of its own, nothing for the collector to
look at. `FIELDS` are its elements in their order.
"""

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

FIELDS: Final = (
    "labels",
    "request_id",
    "status",
    "phase",
    "ended_at",
    "attempts",
    "queue_ms",
    "first_byte_ms",
    "total_ms",
    "reason",
)
"""`labels` is a request_log.Labels, `ended_at` of the monotonic clock; what is not known is None."""

WIDTH: Final = len(FIELDS)

TOGETHER: Final = 512
"""So many requests are counted at a time: one by one would cost several times as much."""

FULL: Final = TOGETHER * WIDTH

KEPT: Final = 4096
"""How many requests are remembered at least, once there were so many."""

Flat = list[Any]
"""Requests one after the other, each as FIELDS says."""

Count = Callable[[Flat], None]


class RequestHistory:
    """What RequestLog adds to; `count` is given every request once, some at a time."""

    def __init__(self) -> None:
        self.count: Count | None = None
        self.filling: Flat = []
        """What is being filled; `turn_over` is due when it has FULL elements."""
        self._full: deque[Flat] = deque(maxlen=KEPT // TOGETHER)
        self._counted = 0

    def turn_over(self) -> None:
        """Begin with an empty list; the oldest requests are forgotten."""
        self.count_new()
        self._full.append(self.filling)
        self.filling = []
        self._counted = 0

    def count_new(self) -> None:
        """Have those counted that were not counted yet."""
        if self.count is not None and len(self.filling) > self._counted:
            self.count(self.filling[self._counted :])
        self._counted = len(self.filling)

    def find(self, request_id: str) -> list[dict[str, Any]]:
        """Return what became of requests with this id, the oldest first.

        The names are those of the journal's fields in lower case; `at` is when it ended (ISO 8601).
        """
        return [
            _as_fields(flat[place * WIDTH : (place + 1) * WIDTH])
            for flat in (*self._full, self.filling)
            for place, known in enumerate(flat[1::WIDTH])
            if known == request_id
        ]


def _as_fields(request: Flat) -> dict[str, Any]:
    labels, *values = request
    known = dict(zip(FIELDS[1:], values, strict=True))
    ago = timedelta(seconds=time.monotonic() - known.pop("ended_at"))
    at = (datetime.now(UTC) - ago).isoformat(timespec="milliseconds")
    tree = {"at": at, "request_id": known.pop("request_id"), **dict(labels.values), **known}
    return {
        name: round(value, 1) if isinstance(value, float) else value
        for name, value in tree.items()
        if value is not None
    }
