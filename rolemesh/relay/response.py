"""Incremental reader of one upstream response: its head, where its body ends, and its raw bytes.

The body is not re-framed: `feed_body` returns it as it came, chunk framing included, and the parser
is fed only to find the end. Nothing after the end of the message is ever returned.

An upstream sends the same head again and again, but for a length, a date and an id. So a head is
read without those, and what the rest of it says is remembered.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from typing import Final

import httptools

from rolemesh.relay.headers import RESPONSE_HEAD, end_to_end, fields_of, status_line
from rolemesh.relay.replies import Reply

MAX_HEAD_BYTES: Final = 65536

_VARYING: Final = re.compile(
    rb"\n(?:[Cc]ontent-[Ll]ength:[ \t]*([0-9]{1,18})[ \t]*|(?:[Dd]ate|[Xx]-[Rr]equest-[Ii][Dd]"
    rb"|X-RoleMesh-(?:Queue-Ms|Attempts)):[\t\x20-\x7e\x80-\xff]*)\r(?=\n)"
)
"""The headers that differ between responses of one upstream; but for the length none is passed on."""

_REMEMBERED_HEADS: Final = 256
_REMEMBERED_BYTES: Final = 4096
_CHUNKED_START: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class ResponseError(Exception):
    """The upstream does not speak HTTP/1 properly."""


class Framing(Enum):
    """How the end of the body is found (RFC 9112 section 6.3)."""

    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


# Looking up a member of an Enum costs ten times as much.
_LENGTH: Final = Framing.LENGTH
_CHUNKED: Final = Framing.CHUNKED


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A head of correct syntax without its varying headers.

    `passed` are its first line and the headers that cross this hop, as they are written to a client;
    `keeps_alive` is whether the upstream does; a refusal is a failure of the upstream (5xx). One that
    is plain is no refusal, no stream, and says of its body nothing but, among the varying headers,
    its length.
    """

    status: int
    fields: tuple[tuple[bytes, bytes], ...]
    passed: bytes
    is_refusal: bool
    has_body: bool
    is_event_stream: bool
    is_plain: bool
    is_chunked: bool
    keeps_alive: bool

    def field(self, name: bytes) -> bytes:
        """Return a header's value, b"" when there is none, several joined by commas."""
        return b", ".join(value for key, value in self.fields if key == name)


def read_whole(data: bytes) -> tuple[ResponseHead, bytes] | None:
    """Return head and body of a plain response that `data` is, whole and alone; None if it is not.

    None also of what only looks like one: ResponseReader has the last word.
    """
    end = data.find(b"\r\n\r\n") + 4
    pieces = _VARYING.split(data[:end])
    lengths = [length for length in pieces[1::2] if length]
    if len(lengths) != 1 or len(data) - end != int(lengths[0]):
        return None
    constant = b"".join(pieces[::2])
    if len(constant) > _REMEMBERED_BYTES:
        return None
    head = _remembered(constant)
    return (head, data[end:]) if head.is_plain else None


def whole_reply(head: ResponseHead, body: bytes) -> Reply:
    """Return an answer that is taken in whole, with those of its headers that pass then."""
    fields = tuple(
        (name, value)
        for name in ("Content-Type", "Retry-After")
        if (value := head.field(name.lower().encode()).decode("latin-1"))
    )
    return Reply(status=head.status, body=body, fields=fields)


class ResponseReader:
    """Reads one response; informational (1xx) ones before it are skipped.

    `head` is None until it is whole; then `framing`, and with Framing.LENGTH `length`, are valid.
    `sink`, when set, is given each piece of the body, decoded.
    """

    __slots__ = (
        "_begun",
        "_in_chunk",
        "_left",
        "_line_is_over",
        "_overrun",
        "_parser",
        "complete",
        "framing",
        "head",
        "length",
        "sink",
    )

    def __init__(self, sink: Callable[[bytes], object] | None = None) -> None:
        self.head: ResponseHead | None = None
        self.sink = sink
        self.complete = False
        self.length = self._left = 0
        self._parser: httptools.HttpResponseParser | None = None
        self._begun = b""
        self._overrun = False

    @property
    def reusable(self) -> bool:
        """Tell whether the connection may serve another request after this response."""
        return (
            self.complete
            and not self._overrun
            and self.head is not None
            and self.head.keeps_alive
            and self.framing is not Framing.CLOSE
        )

    @property
    def between_chunks(self) -> bool:
        """Tell whether a chunk of our own could be written where the stream stands."""
        if self.framing is Framing.CHUNKED:
            return not self._in_chunk and self._line_is_over
        return self.framing is Framing.CLOSE

    # -- httptools callbacks ---------------------------------------------------------------

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
        """Hand on decoded body bytes."""
        if self.sink is not None and not self.complete:
            self.sink(data)

    def on_message_complete(self) -> None:
        """Note the end of a chunked body."""
        self.complete = True

    # --------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the upstream and return the raw body bytes among them; see feed_body."""
        if self.head is None:
            begun = self.feed_head(data)
            if begun is None:
                return b""
            _, data = begun
        return self.feed_body(data)

    def feed_head(self, data: bytes) -> tuple[ResponseHead, bytes] | None:
        """Take bytes of the head; returns it and those behind it, None while it is not whole.

        Raises ResponseError when it is not a proper one.
        """
        if self._begun:
            data = self._begun + data
        while (end := data.find(b"\r\n\r\n") + 4) >= 4:
            # What stands between the varying headers, and the value of each that is a length.
            pieces = _VARYING.split(data[:end])
            constant = b"".join(pieces[::2])
            head = (_remembered if len(constant) <= _REMEMBERED_BYTES else _parse)(constant)
            data = data[end:]
            if head.status >= 200:
                self._frame(head, [length for length in pieces[1::2] if length is not None])
                self.head = head
                self._begun = b""
                return head, data
        if len(data) > MAX_HEAD_BYTES:
            msg = "the response head is too large"
            raise ResponseError(msg)
        self._begun = data
        return None

    def feed_body(self, data: bytes) -> bytes:
        """Take bytes behind the head and return those of the body as they came.

        Raises ResponseError when they are not a proper body. Bytes after the end of a counted body
        are dropped; behind a chunked one, in the same data, they are an error.
        """
        framing = self.framing
        if framing is _CHUNKED:
            if data:
                self._feed_chunks(data)
            return data
        if framing is _LENGTH:
            left = self._left - len(data)
            if left < 0:
                self._overrun = True
                data = data[:left]
                left = 0
            self._left = left
            self.complete = not left
        if data and self.sink is not None:
            self.sink(data)
        return data

    def framing_line(self, minor: int) -> bytes:
        """Return the framing header for a client of HTTP/1.`minor`.

        What such a client cannot read as it came has to be re-framed.
        """
        if self.head is None or not self.head.has_body:
            return b""
        if self.framing is Framing.LENGTH:
            return b"Content-Length: %d\r\n" % self.length
        return b"Transfer-Encoding: chunked\r\n" if minor else b""

    def let_go(self) -> None:
        """Let go of the parser, which holds on to this reader."""
        self._parser = None

    def end(self) -> ResponseHead:
        """Take the end of the connection; raises ResponseError when the response is not whole."""
        if self.head is not None and self.framing is Framing.CLOSE:
            self.complete = True
        if self.head is None or not self.complete:
            msg = "the connection closed before the response was whole"
            raise ResponseError(msg)
        return self.head

    def _feed_chunks(self, data: bytes) -> None:
        self._line_is_over = data.endswith(b"\n")
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as err:
            msg = f"malformed chunked response: {err}"
            raise ResponseError(msg) from err
        if self._overrun:
            msg = "data after the end of the response"
            raise ResponseError(msg)

    def _frame(self, head: ResponseHead, varying: list[bytes]) -> None:
        """Find out how the end of the body will be found."""
        lengths = [*varying, *(value for name, value in head.fields if name == b"content-length")]
        if len(lengths) > 1 or (head.is_chunked and lengths):
            msg = "the response's framing is ambiguous"
            raise ResponseError(msg)
        if not head.has_body:
            self._count_down_from(b"0")  # 204 and 304 have none, whatever their head says
        elif lengths:
            self._count_down_from(lengths.pop())
        elif head.is_chunked:
            self.framing = Framing.CHUNKED
            self._in_chunk = False
            self._line_is_over = True
            self._parser = parser = httptools.HttpResponseParser(self)
            parser.feed_data(_CHUNKED_START)
        else:
            self.framing = Framing.CLOSE

    def _count_down_from(self, length: bytes) -> None:
        if not length.isdigit() or len(length) > 18:
            msg = "the response's Content-Length is not a number"
            raise ResponseError(msg)
        self.framing = Framing.LENGTH
        self.length = self._left = int(length)
        self.complete = self._left == 0


def _parse(constant: bytes) -> ResponseHead:
    match = RESPONSE_HEAD.fullmatch(constant)
    if match is None:
        msg = "the response head is malformed"
        raise ResponseError(msg)
    status = int(match[2])
    if status == 101:
        msg = "the upstream switched protocols unasked"
        raise ResponseError(msg)
    fields = tuple(fields_of(constant))

    def field(name: bytes) -> bytes:
        return b", ".join(value for key, value in fields if key == name).lower()

    coding, connection = field(b"transfer-encoding"), field(b"connection")
    if coding not in (b"", b"chunked"):
        msg = "the response's framing is ambiguous"
        raise ResponseError(msg)
    has_body = status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
    is_refusal = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    is_event_stream = field(b"content-type").startswith(b"text/event-stream")
    has_framing = bool(coding or field(b"content-length"))
    return ResponseHead(
        status=status,
        fields=fields,
        passed=status_line(status) + end_to_end(fields),
        is_refusal=is_refusal,
        has_body=has_body,
        is_event_stream=is_event_stream,
        is_plain=status >= HTTPStatus.OK
        and has_body
        and not (is_refusal or is_event_stream or has_framing),
        is_chunked=coding == b"chunked",
        keeps_alive=b"close" not in connection
        and (match[1] == b"1" or b"keep-alive" in connection),
    )


_remembered = lru_cache(maxsize=_REMEMBERED_HEADS)(_parse)
