"""Incremental reader of one upstream response: its head, where its body ends, and its raw bytes.

The body is not re-framed: `feed` returns it as it came, chunk framing included, and the parser is
fed only to find the end. Nothing after the end of the message is ever returned.
"""

from enum import Enum
from typing import Final

import httptools

from rolemesh.relay.headers import RESPONSE_HEAD

MAX_HEAD_BYTES: Final = 65536


class ResponseError(Exception):
    """The upstream does not speak HTTP/1 properly."""


class Framing(Enum):
    """How the end of the body is found (RFC 9112 section 6.3)."""

    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


class ResponseReader:
    """Reads one response; informational (1xx) ones before it are skipped.

    `status`, `fields` (names in lower case), `framing` and `length` (with Framing.LENGTH) are valid
    once `head_done`. While `collect` is set, decoded body bytes gather in `decoded`.
    """

    __slots__ = (
        "_head",
        "_in_chunk",
        "_left",
        "_line_is_over",
        "_overrun",
        "_parser",
        "_reusable",
        "collect",
        "complete",
        "decoded",
        "fields",
        "framing",
        "head_done",
        "length",
        "status",
    )

    def __init__(self) -> None:
        self.status = 0
        self.fields: list[tuple[bytes, bytes]] = []
        self.framing = Framing.CLOSE
        self.head_done = False
        self.complete = False
        self.collect = True
        self.decoded = bytearray()
        self.length = 0
        self._head = b""
        self._left = 0
        self._in_chunk = False
        self._line_is_over = True
        self._overrun = False
        self._reusable = False

    @property
    def reusable(self) -> bool:
        """Tell whether the connection may serve another request after this response."""
        return self.complete and self._reusable and not self._overrun

    @property
    def between_chunks(self) -> bool:
        """Tell whether a chunk of our own could be written where the stream stands."""
        return self.framing is not Framing.LENGTH and not self._in_chunk and self._line_is_over

    def field(self, name: bytes) -> bytes:
        """Return a header's value, b"" when there is none, several joined by commas."""
        return b", ".join(value for key, value in self.fields if key == name)

    def take_decoded(self) -> bytes:
        """Return what has gathered in `decoded` since the last call, and empty it."""
        taken = bytes(self.decoded)
        self.decoded.clear()
        return taken

    # -- httptools callbacks ---------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header; trailers are not passed on."""
        if not self.head_done:
            self.fields.append((name.lower(), value.strip(b" \t")))

    def on_message_begin(self) -> None:
        """Notice bytes after the end of the response."""
        if self.complete:
            self._overrun = True

    def on_chunk_header(self) -> None:
        """Enter a chunk."""
        self._in_chunk = True

    def on_chunk_complete(self) -> None:
        """Leave a chunk."""
        self._in_chunk = False

    def on_body(self, data: bytes) -> None:
        """Collect decoded body bytes."""
        if self.collect and not self.complete:
            self.decoded += data

    def on_message_complete(self) -> None:
        """Note the end of a chunked body; other framings find theirs by counting."""
        if self.head_done and self.framing is Framing.CHUNKED:
            self.complete = True

    # --------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the upstream and return the raw body bytes among them.

        Raises ResponseError when they are not a proper response. Bytes after the end of a counted
        body are dropped; behind a chunked one, in the same data, they are an error.
        """
        if not self.head_done:
            data = self._feed_head(data)
            if not self.head_done:
                return b""
        if self.framing is Framing.CHUNKED:
            return self._feed_chunked(data)
        if self.framing is Framing.LENGTH:
            self._overrun = len(data) > self._left
            data = data[: self._left]
            self._left -= len(data)
            self.complete = self._left == 0
        if self.collect:
            self.decoded += data
        return data

    def end(self) -> None:
        """Take the end of the connection; raises ResponseError when the response is not whole."""
        if self.head_done and self.framing is Framing.CLOSE:
            self.complete = True
        if not self.complete:
            msg = "the connection closed before the response was whole"
            raise ResponseError(msg)

    def _feed_chunked(self, data: bytes) -> bytes:
        if data:
            self._line_is_over = data.endswith(b"\n")
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError as err:
                msg = f"malformed chunked response: {err}"
                raise ResponseError(msg) from err
            if self._overrun:
                msg = "data after the end of the response"
                raise ResponseError(msg)
        return data

    def _feed_head(self, data: bytes) -> bytes:
        """Take bytes of the head; returns those behind it once it is whole."""
        self._head += data
        while (end := self._head.find(b"\r\n\r\n") + 4) >= 4:
            match = RESPONSE_HEAD.fullmatch(self._head, 0, end)
            if match is None:
                msg = "the response head is malformed"
                raise ResponseError(msg)
            head, self._head = self._head[:end], self._head[end:]
            status = int(match[2])
            if status == 101:
                msg = "the upstream switched protocols unasked"
                raise ResponseError(msg)
            if status >= 200:
                self._parse_head(head, status, minor=int(match[1]))
                return self._head
        if len(self._head) > MAX_HEAD_BYTES:
            msg = "the response head is too large"
            raise ResponseError(msg)
        return b""

    def _parse_head(self, head: bytes, status: int, minor: int) -> None:
        self._parser = httptools.HttpResponseParser(self)
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserError as err:
            msg = f"the response head is malformed: {err}"
            raise ResponseError(msg) from err
        self.status = status
        lengths = {value for name, value in self.fields if name == b"content-length"}
        coding = self.field(b"transfer-encoding").lower()
        if coding not in (b"", b"chunked") or len(lengths) > 1 or (coding and lengths):
            msg = "the response's framing is ambiguous"
            raise ResponseError(msg)
        self.head_done = True
        if status in (204, 304):
            self._count_down_from(b"0")  # these have no body, whatever their head says
        elif coding:
            self.framing = Framing.CHUNKED
        elif lengths:
            self._count_down_from(lengths.pop())
        tokens = self.field(b"connection").lower()
        keeps = b"close" not in tokens and (minor == 1 or b"keep-alive" in tokens)
        self._reusable = keeps and self.framing is not Framing.CLOSE

    def _count_down_from(self, length: bytes) -> None:
        if not length.isdigit() or len(length) > 18:
            msg = "the response's Content-Length is not a number"
            raise ResponseError(msg)
        self.framing = Framing.LENGTH
        self.length = self._left = int(length)
        self.complete = self._left == 0
