"""The one record that each request leaves, in the journal or on the terminal.

A LogRecord would cost more than the rest of a request's own bookkeeping, so a record goes to the
journal as the text it is there. What one client asks of one model again and again is the same in
each record, and is written out once: its labels. The last records are remembered (`request_history`).
"""

import logging
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from rolemesh.runtime.journal import JournalHandler
from rolemesh.runtime.log import fields
from rolemesh.runtime.request_history import FIELDS, FULL, RequestHistory

REASON_CHARACTERS: Final = 1000
"""How much of a reason is remembered: it may repeat what a client has sent."""


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """What many requests have in common; `lines` is its text in the journal, "" if it needs care.

    Not compared by their values: a dictionary of them is as fast as one of numbers.
    """

    what: str
    values: tuple[tuple[str, str], ...]
    lines: str


@lru_cache(maxsize=4096)
def labels(what: str, **values: str | None) -> Labels:
    """Return labels: in words, what was asked for and who answered; and in fields, but for None."""
    given = tuple((name, value) for name, value in values.items() if value is not None)
    lines = "".join(f"ROLEMESH_{name.upper()}={value}\n" for name, value in given)
    is_plain = lines.count("\n") == len(given) and "\n" not in what
    return Labels(what, given, lines if is_plain else "")


class RequestLog:
    """Writes the one record of each request; `name` is the logger's."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._logger = logging.getLogger(name)
        self._handlers = logging.getLogger().handlers
        self.history = RequestHistory()
        """The last records, whatever the log's threshold."""

    def write(
        self,
        of: Labels,
        request_id: str,
        status: int,
        phase: str,
        *,
        total_ms: float,
        attempts: int | None = None,
        queue_ms: float | None = None,
        first_byte_ms: float | None = None,
        reason: str | None = None,
    ) -> None:
        """Write a record; None is left out. Never pass prompts, replies or keys."""
        request = (
            of,
            request_id,
            status,
            phase,
            time.monotonic(),
            attempts,
            queue_ms,
            first_byte_ms,
            total_ms,
            reason and reason[:REASON_CHARACTERS],
        )
        history = self.history
        filling = history.filling
        filling += request
        if len(filling) >= FULL:
            history.turn_over()
        if not self._logger.isEnabledFor(logging.INFO):
            return
        handlers = self._handlers
        handler = handlers[0] if len(handlers) == 1 else None
        is_usual = reason is None and first_byte_ms is not None and queue_ms is not None
        if is_usual and of.lines and isinstance(handler, JournalHandler):
            handler.write_soon(self._name, _lines, request)
            return
        self._log(request, reason)

    def _log(self, request: tuple[Any, ...], reason: str | None) -> None:
        """Write a record, elements as of RequestHistory, by way of a LogRecord."""
        values = dict(zip(FIELDS, request, strict=True))
        of: Labels = values.pop("labels")
        del values["ended_at"]
        first = {name: values.pop(name) for name in ("request_id", "status", "phase")}
        extra = fields(**{**first, **dict(of.values), **values, "reason": reason})
        message = f"{of.what}: {first['status']} in {values['total_ms']:.0f} ms"
        self._logger.info("%s", message, extra=extra)


def _lines(request: tuple[Any, ...]) -> str:
    """Return a usual record, elements as of RequestHistory, as the journal takes it."""
    of, request_id, status, phase, _, attempts, queue_ms, first_byte_ms, total_ms, _ = request
    tries = "" if attempts is None else f"ROLEMESH_ATTEMPTS={attempts}\n"
    return (
        f"MESSAGE={of.what}: {status} in {total_ms:.0f} ms\n{of.lines}{tries}"
        f"ROLEMESH_REQUEST_ID={request_id}\nROLEMESH_STATUS={status}\n"
        f"ROLEMESH_PHASE={phase}\nROLEMESH_QUEUE_MS={queue_ms:.1f}\n"
        f"ROLEMESH_FIRST_BYTE_MS={first_byte_ms:.1f}\nROLEMESH_TOTAL_MS={total_ms:.1f}\n"
    )
