"""Log lines with fields.

Records carry request fields as `extra=fields(...)`; on stderr they follow the message as
`key=value`, in the journal's priority syntax when stderr leads there (sd-daemon(3)).
"""

import logging
import os
import sys
from collections.abc import Iterable
from typing import Any, Final

from rolemesh.errors import Problem

logger = logging.getLogger(__name__)

_FIELDS: Final = "rolemesh_fields"
_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)


def fields(**values: Any) -> dict[str, Any]:
    """Return the `extra` of a log call; None values are left out.

    Never pass prompts, replies or keys: what stands here reaches the journal.
    """
    return {_FIELDS: {key: value for key, value in values.items() if value is not None}}


class _Formatter(logging.Formatter):
    """`message key=value ...`, with time and level for people or `<N>` for the journal."""

    def __init__(self, *, for_journal: bool, name: str = "") -> None:
        named = f"{name}: " if name else ""
        super().__init__(f"%(asctime)s %(levelname)-7s {named}%(message)s", "%H:%M:%S")
        self._for_journal = for_journal

    def format(self, record: logging.LogRecord) -> str:
        extra: dict[str, Any] = getattr(record, _FIELDS, {})
        pairs = "".join(f" {key}={_quoted(value)}" for key, value in extra.items())
        if not self._for_journal:
            return super().format(record) + pairs
        text = record.getMessage() + pairs
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        prefix = f"<{_priority(record.levelno)}>"
        return "\n".join(prefix + line for line in text.splitlines())


def _quoted(value: Any) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    return text if text and text.isprintable() and " " not in text else repr(text)


def _priority(level: int) -> int:
    return next(priority for floor, priority in _PRIORITIES if level >= floor)


def stderr_is_journal() -> bool:
    """Tell whether stderr is the journal's stream (JOURNAL_STREAM, systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        stat = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(stat.st_dev), str(stat.st_ino))


def setup_logging(name: str = "") -> None:
    """Send the records of this process to stderr; $ROLEMESH_LOG_LEVEL sets the threshold.

    `name` stands before each line where several programs share a terminal; the journal knows
    without it whose line it is.
    """
    level = os.environ.get("ROLEMESH_LOG_LEVEL", "INFO").upper()
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(for_journal=stderr_is_journal(), name=name))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level if level in logging.getLevelNamesMapping() else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.raiseExceptions = False


def log_warnings(warnings: Iterable[Problem]) -> None:
    """Log what is doubtful about an accepted configuration."""
    for warning in warnings:
        logger.warning("%s", warning)
