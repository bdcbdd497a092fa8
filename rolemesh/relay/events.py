"""Which bytes of an SSE stream are comments: those are no sign that an answer comes along."""

import re
from typing import Final

_ERROR_BYTES: Final = 4096
_ONLY_COMMENTS: Final = re.compile(rb"(?:(?::[^\r\n]*)?(?:\r\n|\n|\r))*+(?::[^\r\n]*)?")


_ERROR: Final = re.compile(rb'(?:^|\n)data: \{[^\n]*"error": ?\{[^\n]*"request_id"[^\n]*\n\n')


def has_error(data: bytes) -> bool:
    """Tell whether the end of a stream's data has an error of RoleMesh, as of a node behind it."""
    return _ERROR.search(data[-_ERROR_BYTES:]) is not None


class EventLines:
    """Follows a stream piece by piece, wherever its pieces are cut.

    `has_content` is set by a byte of a line that is not a comment; whoever reads it resets it.
    """

    __slots__ = ("_begun", "has_content")

    def __init__(self) -> None:
        self._begun = b""
        self.has_content = False

    def take(self, data: bytes) -> None:
        """Take the next bytes."""
        if not self._begun and data[:5] == b"data:" and data[-1:] == b"\n":
            self.has_content = True  # whole lines, as nearly always
            return
        if not data:
            return
        text = self._begun + data
        # The first byte of a line tells what it is, so it stands for the part already seen.
        end = max(text.rfind(b"\n"), text.rfind(b"\r"))
        self._begun = text[end + 1 : end + 2]
        if _ONLY_COMMENTS.fullmatch(text) is None:
            self.has_content = True
