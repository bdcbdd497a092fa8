"""Which bytes of an SSE stream are comments: those are no sign that an answer comes along."""

import re
from typing import Final

EVENT_STREAM: Final = b"text/event-stream"
"""The media type of such a stream."""

_ONLY_COMMENTS: Final = re.compile(rb"(?:(?::[^\r\n]*)?(?:\r\n|\n|\r))*+(?::[^\r\n]*)?")


class EventLines:
    """Follows a stream piece by piece, wherever its pieces are cut."""

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self._begun = b""

    def has_content(self, data: bytes) -> bool:
        """Take the next bytes; tell whether some belong to a line that is not a comment."""
        if not data:
            return False
        text = self._begun + data
        # The first byte of a line tells what it is, so it stands for the part already seen.
        end = max(text.rfind(b"\n"), text.rfind(b"\r"))
        self._begun = text[end + 1 : end + 2]
        return _ONLY_COMMENTS.fullmatch(text) is None
