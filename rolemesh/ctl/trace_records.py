"""What is known of one request, from journals and daemons -> one list in the order of time; pure.

A daemon remembers its last records and writes them to its host's journal, too: the same record is
shown once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

PREFIX: Final = "ROLEMESH_"

_SAME: Final = ("status", "phase", "path", "node", "instance", "attempts", "queue_ms", "total_ms")
"""The fields in which two records of one request differ, unless they are one."""

_MARGIN: Final = timedelta(milliseconds=100)
"""How far the engine's lines may lie outside the time of the request that they belong to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRecord:
    """One thing that is known of a request.

    `at` is when it was written, for a request's own record its end. `source` is the program, or
    the node that told. `fields` are named as in the journal, without the prefix, in lower case.
    `is_inferred`: it names no request, but came from the request's instance in its time.
    """

    at: datetime | None
    source: str
    message: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    is_inferred: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "at": None if self.at is None else self.at.isoformat(timespec="microseconds"),
            "source": self.source,
            "message": self.message,
            "fields": dict(self.fields),
            "inferred": self.is_inferred,
        }


def from_journal(
    at: datetime, entry: Mapping[str, str], *, is_inferred: bool = False
) -> TraceRecord:
    """Return an entry of the journal as a record."""
    fields = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in entry.items()
        if name.startswith(PREFIX)
    }
    return TraceRecord(
        at=at,
        source=entry.get("SYSLOG_IDENTIFIER") or entry.get("_COMM", "?"),
        message=entry.get("MESSAGE", ""),
        fields=fields,
        is_inferred=is_inferred,
    )


def from_gateway(told: Mapping[str, Any]) -> TraceRecord:
    """Return an element of `records` of the gateway's answer as a record."""
    fields = {str(name): str(value) for name, value in told["fields"].items() if value is not None}
    return TraceRecord(at=_time(fields.pop("at", "")), source=str(told["source"]), fields=fields)


def _time(text: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo is not None else None


def merged(journal: Iterable[TraceRecord], told: Iterable[TraceRecord]) -> list[TraceRecord]:
    """Return both in the order of time, each record once; the journal's has the message."""
    records = list(journal)
    known = {_identity(record) for record in records if "status" in record.fields}
    records += [record for record in told if _identity(record) not in known]
    return in_order(records)


def in_order(records: Iterable[TraceRecord]) -> list[TraceRecord]:
    """Return records in the order of time, those without one at the end."""
    return sorted(
        records, key=lambda record: (record.at is None, record.at.timestamp() if record.at else 0.0)
    )


def _identity(record: TraceRecord) -> tuple[str | None, ...]:
    return tuple(record.fields.get(name) for name in _SAME)


def engine_window(record: TraceRecord) -> tuple[str, datetime, datetime] | None:
    """Return on which instance, and from when to when, a request was worked on.

    None for records that do not say.
    """
    instance, total_ms = record.fields.get("instance"), record.fields.get("total_ms")
    if instance is None or total_ms is None or record.at is None:
        return None
    try:
        took = timedelta(milliseconds=float(total_ms))
    except (ValueError, OverflowError):
        return None
    return instance, record.at - took - _MARGIN, record.at + _MARGIN
