"""The last lines of a llama-server's log; pure."""

from collections import deque
from typing import Final

# What says why it crashed is followed by the stack of each of its threads.
KEPT_LINES: Final = 400
MAX_LINE_BYTES: Final = 16 * 1024
OWN_CHECKS: Final = (b"/health", b"/slots")
"""What a line about our own looking at the llama-server contains: it is no sign of its life."""

_KEPT_CHARACTERS: Final = 1024


class LogTail:
    """Splits a byte stream into lines and keeps the last ones.

    `line_count` is of all but OWN_CHECKS.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix.encode()
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._partial = b""
        self.line_count = 0

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; return the lines they complete, each after the prefix.

        A line longer than MAX_LINE_BYTES is cut into several.
        """
        *complete, self._partial = (self._partial + chunk).split(b"\n")
        while len(self._partial) > MAX_LINE_BYTES:
            complete.append(self._partial[:MAX_LINE_BYTES])
            self._partial = self._partial[MAX_LINE_BYTES:]
        for line in complete:
            self._keep(line)
        return b"".join(self._prefix + line + b"\n" for line in complete)

    def end(self) -> bytes:
        """Return what is left of a last line without an end."""
        return self.feed(b"\n") if self._partial else b""

    def lines(self) -> tuple[str, ...]:
        """Return the last lines, oldest first."""
        return tuple(self._lines)

    def forget(self) -> None:
        """Drop the lines so far: they have nothing to do with what comes."""
        self._lines.clear()

    def _keep(self, line: bytes) -> None:
        self.line_count += not any(each in line for each in OWN_CHECKS)
        self._lines.append(line[:_KEPT_CHARACTERS].decode("utf-8", "replace"))
