"""Log records with fields, and where they go: to a terminal as lines, to the journal as fields.

Records carry request fields as `extra=fields(...)`. On a terminal they follow the message as
`key=value`; where stderr leads to the journal, records go there in its own protocol (`journal`).
"""

import logging
import os
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from rolemesh.errors import Problem
from rolemesh.runtime.journal import (
    EVENT,
    FIELDS,
    JOURNAL_SOCKET,
    JournalHandler,
    JournalSender,
    RecordEncoder,
    priority,
    value_text,
)
from rolemesh.runtime.operator_events import OperatorEvent

logger = logging.getLogger(__name__)


def fields(*, event: OperatorEvent | None = None, **values: Any) -> dict[str, Any]:
    """Return the `extra` of a log call; None values are left out.

    Never pass prompts, replies or keys: what stands here reaches the journal.
    """
    extra: dict[str, Any] = {
        FIELDS: {key: value for key, value in values.items() if value is not None}
    }
    if event is not None:
        extra[EVENT] = event
    return extra


class _Formatter(logging.Formatter):
    """`message key=value ...`, with time and level for people or `<N>` for the journal."""

    def __init__(self, *, for_journal: bool, name: str = "") -> None:
        named = f"{name}: " if name else ""
        super().__init__(f"%(asctime)s %(levelname)-7s {named}%(message)s", "%H:%M:%S")
        self._for_journal = for_journal

    def format(self, record: logging.LogRecord) -> str:
        extra: dict[str, Any] = getattr(record, FIELDS, {})
        pairs = "".join(f" {key}={quoted(value)}" for key, value in extra.items())
        if not self._for_journal:
            return super().format(record) + pairs
        text = record.getMessage() + pairs
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        prefix = f"<{priority(record.levelno)}>"
        return "\n".join(prefix + line for line in text.splitlines())


@lru_cache(maxsize=1024)
def quoted(value: Any) -> str:
    """Return a value as one word that cannot forge anything in a line, quoted if need be."""
    text = value_text(value)
    return text if text and text.isprintable() and " " not in text else repr(text)


def stderr_is_journal() -> bool:
    """Tell whether stderr is the journal's stream (JOURNAL_STREAM, systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        stat = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(stat.st_dev), str(stat.st_ino))


def setup_logging(
    name: str = "", *, program: str = "", constant: Mapping[str, Any] | None = None
) -> None:
    """Send the records of this process to stderr; $ROLEMESH_LOG_LEVEL sets the threshold.

    `name` stands before each line where several programs share a terminal; the journal knows
    without it whose line it is. There `program` is the identifier, and `constant` are fields that
    every record has.
    """
    level = os.environ.get("ROLEMESH_LOG_LEVEL", "INFO").upper()
    root = logging.getLogger()
    root.handlers[:] = [_handler(name, program or Path(sys.argv[0]).name, constant or {})]
    root.setLevel(level if level in logging.getLevelNamesMapping() else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.raiseExceptions = False
    # Nothing that is written names a source line, thread or process, and finding them costs more
    # than all else of a record.
    logging._srcfile = None  # noqa: SLF001 - the documented way
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def _handler(name: str, program: str, constant: Mapping[str, Any]) -> logging.Handler:
    for_journal = stderr_is_journal()
    if for_journal and JOURNAL_SOCKET.is_socket():
        return JournalHandler(RecordEncoder(program, constant), JournalSender(JOURNAL_SOCKET))
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(for_journal=for_journal, name=name))
    return handler


def log_problem() -> str:
    """Return what keeps log records from being written, "" when nothing does."""
    handlers = logging.getLogger().handlers
    problems = [each.problem for each in handlers if isinstance(each, JournalHandler)]
    return "; ".join(filter(None, problems))


def lost_records() -> int:
    """Return how many log records could not be written since the start."""
    handlers = logging.getLogger().handlers
    return sum(each.lost for each in handlers if isinstance(each, JournalHandler))


def log_warnings(warnings: Iterable[Problem]) -> None:
    """Log what is doubtful about an accepted configuration."""
    for warning in warnings:
        logger.warning("%s", warning)
