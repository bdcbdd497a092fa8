"""Incremental reader of one inference request: its head, checked, and its body, bounded.

httptools splits the head and decodes chunks; what may stand in a head, how long it may be and how
the body is framed is decided here (RFC 9112 sections 2 to 7), because httptools 0.1.1 is lenient.
"""

import re
from dataclasses import dataclass
from typing import Final

import httptools

from rolemesh.errors import BadRequest, BodyTooLarge, HeadTooLarge
from rolemesh.relay.headers import REQUEST_HEAD, UPGRADE_FIELD

_HEAD_END: Final = b"\r\n\r\n"
_BARE_LINE_FEED: Final = re.compile(rb"(?<!\r)\n")
_SINGLE_FIELDS: Final = frozenset(
    {b"content-length", b"transfer-encoding", b"host", b"authorization", b"x-api-key"}
)


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A head of correct syntax; `raw` is all of it, blank line included."""

    method: str
    path: str
    minor: int
    raw: bytes


def read_head(buffer: bytes, max_bytes: int) -> RequestHead | None:
    """Return the head at the start of `buffer`, None while it is not whole.

    Raises BadRequest as soon as it can no longer become a correct one, HeadTooLarge.
    """
    end = buffer.find(_HEAD_END) + len(_HEAD_END)
    if end < len(_HEAD_END):
        if len(buffer) > max_bytes:
            raise HeadTooLarge(max_bytes)
        if _BARE_LINE_FEED.search(buffer) or not buffer[:1].isalpha():
            raise _malformed()
        return None
    if end > max_bytes:
        raise HeadTooLarge(max_bytes)
    match = REQUEST_HEAD.fullmatch(buffer, 0, end)
    if match is None:
        raise _malformed()
    path = match[2].decode("ascii").partition("?")[0]
    return RequestHead(match[1].decode("ascii"), path, int(match[3]), buffer[:end])


class RequestReader:
    """Reads one request whose head is there; `complete` once its body is.

    `fields` are its headers by lower-case name, `keep_alive` whether the client keeps the
    connection. Raises from the constructor and from `feed` what the client is to be told; nothing
    after that can be trusted to be a request.
    """

    __slots__ = (
        "_chunked",
        "_left",
        "_max_body_bytes",
        "_parser",
        "_received",
        "_repeated",
        "complete",
        "fields",
        "head",
        "keep_alive",
    )

    def __init__(self, head: RequestHead, max_body_bytes: int) -> None:
        self.head = head
        self.fields: dict[bytes, bytes] = {}
        self.complete = False
        self._max_body_bytes = max_body_bytes
        self._received = bytearray()
        self._repeated = b""
        self._chunked = False
        self._parser = httptools.HttpRequestParser(self)
        try:
            # An offer to upgrade is ignored, as RFC 9110 section 7.8 permits.
            self._parser.feed_data(UPGRADE_FIELD.sub(b"", head.raw))
        except httptools.HttpParserError as err:
            raise _malformed() from err
        if self._repeated:
            msg = f"more than one {self._repeated.decode()} header"
            raise BadRequest(msg)
        self.keep_alive: bool = head.minor == 1 and self._parser.should_keep_alive()
        self._left = self._body_length()

    @property
    def body(self) -> bytes:
        """Return the whole body."""
        return bytes(self._received)

    @property
    def expects_continue(self) -> bool:
        """Tell whether the client waits for `100 Continue` before it sends the body."""
        expected = self.fields.get(b"expect", b"").lower()
        return not self.complete and self.head.minor == 1 and expected == b"100-continue"

    def field(self, name: str) -> str | None:
        """Return the value of the header `name` (lower case), None when it was not sent."""
        value = self.fields.get(name.encode())
        return None if value is None else value.decode("utf-8", "surrogateescape")

    def wants_more_than(self, data: bytes) -> bool:
        """Tell whether `data`, the first of the body, is not all of it."""
        return self._chunked or len(data) < self._left

    def feed(self, data: bytes) -> bytes:
        """Take body bytes; returns those that belong to the next request."""
        if self._chunked:
            if data:  # old httptools takes b"" for the end of the connection
                self._feed_chunks(data)
            return b""
        body, rest = data[: self._left], data[self._left :]
        self._left -= len(body)
        self._received += body
        self.complete = self._left == 0
        return rest

    # -- httptools callbacks ---------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header; trailers of a chunked body are dropped."""
        if self._chunked:
            return
        name, value = name.lower(), value.strip(b" \t")
        if name not in self.fields:
            self.fields[name] = value
        elif name in _SINGLE_FIELDS:
            self._repeated = name
        else:
            self.fields[name] += b", " + value

    def on_message_begin(self) -> None:
        """Notice a request behind a chunked one in the same data: it will not be served."""
        if self.complete:
            self.keep_alive = False

    def on_body(self, data: bytes) -> None:
        """Collect one decoded piece of a chunked body."""
        if not self.complete:
            self._received += data

    def on_message_complete(self) -> None:
        """Note the end of a chunked body."""
        if self._chunked:
            self.complete = True

    # --------------------------------------------------------------------------------------

    def _body_length(self) -> int:
        """Return the body's length; 0 and `_chunked` set when it is chunked."""
        length = self.fields.get(b"content-length")
        coding = self.fields.get(b"transfer-encoding")
        if coding is not None:
            if length is not None or self.head.minor == 0 or coding.lower() != b"chunked":
                msg = "the framing of the body is ambiguous (Content-Length, Transfer-Encoding)"
                raise BadRequest(msg)
            self._chunked = True
            return 0
        if length is not None and (not length.isdigit() or len(length) > 15):
            msg = "Content-Length is not a number"
            raise BadRequest(msg)
        size = int(length or b"0")
        if size > self._max_body_bytes:
            raise BodyTooLarge(self._max_body_bytes)
        self.complete = size == 0
        return size

    def _feed_chunks(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as err:
            if not self.complete:
                msg = "the chunked body is malformed"
                raise BadRequest(msg) from err
            self.keep_alive = False
        if len(self._received) > self._max_body_bytes:
            raise BodyTooLarge(self._max_body_bytes)


def _malformed() -> BadRequest:
    return BadRequest("the request head is malformed")
