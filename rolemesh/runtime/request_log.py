"""The one record that each request leaves, in the journal or on the terminal.

A LogRecord would cost more than the rest of a request's own bookkeeping, so a record goes to the
journal as the text it is there. What one client asks of one model again and again is the same in
each record, and is written out once: its labels.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rolemesh.runtime.journal import JournalHandler
from rolemesh.runtime.log import fields


@dataclass(frozen=True, slots=True)
class Labels:
    """What many requests have in common; `lines` is its text in the journal, "" if it needs care."""

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
        if not self._logger.isEnabledFor(logging.INFO):
            return
        handlers = self._handlers
        handler = handlers[0] if len(handlers) == 1 else None
        is_usual = reason is None and first_byte_ms is not None and queue_ms is not None
        if is_usual and of.lines and isinstance(handler, JournalHandler):
            tries = "" if attempts is None else f"ROLEMESH_ATTEMPTS={attempts}\n"
            handler.write_lines(
                self._name,
                f"MESSAGE={of.what}: {status} in {total_ms:.0f} ms\n{of.lines}{tries}"
                f"ROLEMESH_REQUEST_ID={request_id}\nROLEMESH_STATUS={status}\n"
                f"ROLEMESH_PHASE={phase}\nROLEMESH_QUEUE_MS={queue_ms:.1f}\n"
                f"ROLEMESH_FIRST_BYTE_MS={first_byte_ms:.1f}\nROLEMESH_TOTAL_MS={total_ms:.1f}\n",
            )
            return
        values: dict[str, Any] = {
            "request_id": request_id,
            "status": status,
            "phase": phase,
            **dict(of.values),
            "attempts": attempts,
            "queue_ms": queue_ms,
            "first_byte_ms": first_byte_ms,
            "total_ms": total_ms,
            "reason": reason,
        }
        message = f"{of.what}: {status} in {total_ms:.0f} ms"
        self._logger.info("%s", message, extra=fields(**values))
