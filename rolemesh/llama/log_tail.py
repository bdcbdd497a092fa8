"""The last lines of a llama-server's log, and which of them explains its end; pure."""

import re
from collections import deque
from typing import Final

KEPT_LINES: Final = 50
MAX_LINE_BYTES: Final = 16 * 1024
OWN_CHECKS: Final = b"/health"
"""What a line about our own looking at the llama-server contains: it is no sign of its life."""

_SHOWN_CHARACTERS: Final = 300

# From telling to vague: the last line that the first matching pattern finds is the explanation.
# llama-server says what is wrong once, and then on each level that the load failed.
_TELLING: Final = (
    re.compile(
        r"out of memory|bad_alloc|cudaMalloc failed|failed to allocate|unable to allocate"
        r"|error loading model:|invalid argument|error while handling argument|unrecognized"
        r"|error while loading shared libraries|cannot execute|couldn't bind|CUDA error"
        r"|what\(\):|GGML_ASSERT|Illegal instruction|[Ss]egmentation fault"
    ),
    re.compile(r"\berror: |failed to initialize|failed to create|failed to load"),
    re.compile(r"^\S+ E |\berror\b|\bfailed\b|[Ee]xception", re.IGNORECASE),
)
# "0.00.028.691 E llama_model_load: ...": time since start and severity say nothing to a reader.
_PREFIX: Final = re.compile(r"^[0-9]+(?:\.[0-9]+){2,} [A-Z] ")


class LogTail:
    """Splits a byte stream into lines and keeps the last ones; `line_count` is of all but OWN_CHECKS."""

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

    def explanation(self) -> str:
        """Return the line that explains best why the program ended, "" if it said nothing."""
        for pattern in _TELLING:
            for line in reversed(self._lines):
                if pattern.search(line):
                    return _shown(line)
        return next((_shown(line) for line in reversed(self._lines) if line.strip()), "")

    def _keep(self, line: bytes) -> None:
        self.line_count += OWN_CHECKS not in line
        self._lines.append(line[:MAX_LINE_BYTES].decode("utf-8", "replace"))


def _shown(line: str) -> str:
    """Return a log line as one short printable line."""
    text = "".join(each if each.isprintable() else " " for each in _PREFIX.sub("", line))
    return " ".join(text.split())[:_SHOWN_CHARACTERS]
