"""Reads the bytes of a GGUF header front to back: little-endian numbers, texts, arrays.

Holds a small window of the file at a time and never goes beyond the given end.
"""

import io
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

# Value types of the format: number -> struct code of the fixed-size ones.
SCALARS: Final[Mapping[int, str]] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
STRING: Final = 8
ARRAY: Final = 9

_WINDOW_BYTES: Final = 256 * 1024
_LENGTH: Final = struct.Struct("<Q")


class Damaged(ValueError):
    """The bytes are no GGUF header; the text completes a sentence that begins with "it"."""


class ByteReader:
    """Reads `file` from where it stands up to the offset `end`; raises Damaged at what is not so."""

    def __init__(self, file: BinaryIO, end: int) -> None:
        self._file = file
        self._end = end
        self._window = b""
        self._window_start = file.tell()
        self._next = 0  # in the window

    @property
    def offset(self) -> int:
        """Where in the file the next byte is read."""
        return self._window_start + self._next

    def unpack(self, layout: str) -> tuple[Any, ...]:
        """Read numbers; `layout` is that of the struct module."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def text(self, limit_bytes: int) -> str:
        """Read a text; one that is longer than `limit_bytes` is damage."""
        (length,) = self.unpack("<Q")
        if length > limit_bytes:
            msg = f"claims a text of {length} bytes in its metadata"
            raise Damaged(msg)
        return self.take(length).decode("utf-8", "replace")

    def take(self, count: int) -> bytes:
        """Read so many bytes."""
        if count > len(self._window) - self._next:
            self._need(count)
        taken = self._window[self._next : self._next + count]
        self._next += count
        return taken

    def skip(self, count: int) -> None:
        """Go on behind so many bytes, without reading what is not there yet."""
        self._next += count
        self._check(0)

    def skip_texts(self, count: int) -> None:
        """Go on behind so many texts."""
        if count > self._end - self.offset:
            msg = f"claims an array of {count} values in its metadata"
            raise Damaged(msg)
        # A vocabulary has some 100,000: this loop is what reading a header costs.
        unpack = _LENGTH.unpack_from
        while count:
            self._need(8)
            window, position = self._window, self._next
            last = len(window) - 8
            while count and position <= last:
                position += 8 + unpack(window, position)[0]
                count -= 1
            self._next = position
            self._check(0)

    def _need(self, count: int) -> None:
        """Have so many bytes in the window."""
        self._check(count)
        if self._next + count <= len(self._window):
            return
        self._window_start += self._next
        self._next = 0
        self._file.seek(self._window_start)
        wanted = min(max(count, _WINDOW_BYTES), self._end - self._window_start)
        self._window = self._file.read(wanted)
        if len(self._window) < count:
            raise Damaged(_ENDS)

    def _check(self, count: int) -> None:
        if self.offset + count > self._end:
            raise Damaged(_ENDS)


_ENDS: Final = "ends inside its header"


def file_size(file: BinaryIO) -> int:
    """Return the size of an open file, which stands at its start afterwards."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size
