"""Reading one inference request: its head, checked, and its body, bounded.

What may stand in a head, how long it may be and how the body is framed is decided here (RFC 9112
sections 2 to 7); httptools only decodes chunked bodies.

Clients send the same head again and again, but for a length and an id. So a head is read without
those two, and what the rest of it says is remembered.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import httptools

from rolemesh.errors import BadRequest, BodyTooLarge, HeadTooLarge, MethodNotAllowed
from rolemesh.relay.headers import REQUEST_HEAD, fields_of
from rolemesh.relay.target import read_target

METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
"""The methods that some path may take; any other is refused with its head."""

_SINGLE_FIELDS: Final = frozenset(
    {b"authorization", b"content-length", b"host", b"transfer-encoding", b"x-api-key"}
)
_VARYING: Final = re.compile(
    rb"\n([Cc]ontent-[Ll]ength|[Xx]-[Rr]equest-[Ii][Dd]):([\t\x20-\x7e\x80-\xff]*)\r(?=\n)"
)
"""The headers that differ between requests of one client, as clients spell them; any other spelling
is read with the rest."""

_DIGITS: Final = 15
_REMEMBERED_HEADS: Final = 256
_REMEMBERED_BYTES: Final = 4096
_CHUNKED_START: Final = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A head of correct syntax without its varying headers.

    `fields` are headers by lower-case name, `keep_alive` is whether the client keeps the
    connection, `chunked` how the body is framed; else it is as long as the head says. `path` and
    `query` are spelt as `target` has them.
    """

    method: str
    path: str
    query: str
    minor: int
    fields: Mapping[str, str]
    keep_alive: bool
    chunked: bool
    expects_continue: bool


class Request:
    """A request whose head is there.

    `size` is the length of its head, `length` that of its body unless that is chunked,
    `wanted_id` the client's X-Request-Id.
    """

    __slots__ = ("head", "length", "size", "wanted_id")

    def __init__(self, head: RequestHead, size: int, length: int, wanted_id: bytes | None) -> None:
        self.head = head
        self.size = size
        self.length = length
        self.wanted_id = wanted_id

    def field(self, name: str) -> str | None:
        """Return the value of the header `name` (lower case), None when it was not sent."""
        return self.head.fields.get(name)


def read_head(buffer: bytes, max_bytes: int) -> Request | None:
    """Return the request whose head is at the start of `buffer`, None while it is not whole.

    Raises BadRequest as soon as it can no longer become a correct one, HeadTooLarge,
    MethodNotAllowed.
    """
    end = buffer.find(b"\r\n\r\n") + 4
    if end < 4:
        _check_begun(buffer, max_bytes)
        return None
    if end > max_bytes:
        raise HeadTooLarge(max_bytes)
    # Names, values and what stands between them, in turn.
    pieces = _VARYING.split(buffer[:end])
    constant = b"".join(pieces[::3])
    head = (_remembered if len(constant) <= _REMEMBERED_BYTES else _parse)(constant)
    length = wanted_id = None
    for at in range(1, len(pieces), 3):
        value = pieces[at + 1].strip(b" \t")
        if len(pieces[at]) == 14:  # not X-Request-Id
            if length is not None:
                raise _repeated(b"content-length")
            length = value
        else:
            wanted_id = value if wanted_id is None else b""  # two are no sane one
    return Request(head, end, _body_length(head, length), wanted_id)


class BodyReader:
    """Reads the body of a request that did not come whole with its head; bounded.

    `complete` once it is there; then `pipelined` tells whether bytes of another request came in the
    same piece of a chunked body, where they cannot be told apart.
    """

    __slots__ = ("_decoded", "_left", "_max_bytes", "_parser", "_pieces", "complete", "pipelined")

    def __init__(self, request: Request, max_bytes: int) -> None:
        self.complete = False
        self.pipelined = False
        self._max_bytes = max_bytes
        self._decoded = bytearray()
        """Of a chunked body: a list of tiny chunks would take many times their size."""
        self._pieces: list[bytes] = []
        self._left = request.length
        self._parser: httptools.HttpRequestParser | None = None
        if request.head.chunked:
            parser = httptools.HttpRequestParser(self)
            parser.feed_data(_CHUNKED_START)
            self._parser = parser

    @property
    def body(self) -> bytes:
        """Return the whole body."""
        return b"".join(self._pieces) or bytes(self._decoded)

    def feed(self, data: bytes) -> bytes:
        """Take body bytes; returns those that belong to the next request.

        Raises BadRequest or BodyTooLarge; nothing after that can be trusted to be a request.
        """
        if self._parser is not None:
            if data:  # old httptools takes b"" for the end of the connection
                self._feed_chunks(self._parser, data)
            return b""
        rest = b""
        if len(data) > self._left:
            data, rest = data[: self._left], data[self._left :]
        self._left -= len(data)
        self._pieces.append(data)
        self.complete = self._left == 0
        return rest

    # -- httptools callbacks ---------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Notice a request behind a chunked one in the same data: it will not be served."""
        if self.complete:
            self.pipelined = True

    def on_body(self, data: bytes) -> None:
        """Collect one decoded piece of a chunked body."""
        if not self.complete:
            self._decoded += data

    def on_message_complete(self) -> None:
        """Note the end of a chunked body."""
        self.complete = True

    # --------------------------------------------------------------------------------------

    def _feed_chunks(self, parser: httptools.HttpRequestParser, data: bytes) -> None:
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as err:
            if not self.complete:
                msg = "the chunked body is malformed"
                raise BadRequest(msg) from err
            self.pipelined = True
        if len(self._decoded) > self._max_bytes:
            raise BodyTooLarge(self._max_bytes)
        if self.complete:
            self._parser = None  # it holds on to this reader


def _check_begun(buffer: bytes, max_bytes: int) -> None:
    if len(buffer) > max_bytes:
        raise HeadTooLarge(max_bytes)
    # It may come byte by byte: a look at all of it has to cost next to nothing.
    if buffer.count(b"\n") != buffer.count(b"\r\n") or not buffer[:1].isalpha():
        raise _malformed()


def _body_length(head: RequestHead, varying: bytes | None) -> int:
    """Return the body's length, 0 when it is chunked."""
    spelt = head.fields.get("content-length")
    if varying is None:
        if spelt is None:
            return 0
        varying = spelt.encode("utf-8", "surrogateescape")
    elif spelt is not None:
        raise _repeated(b"content-length")
    if head.chunked:
        raise _ambiguous()
    if not varying.isdigit() or len(varying) > _DIGITS:
        msg = "Content-Length is not a number"
        raise BadRequest(msg)
    return int(varying)


def _parse(constant: bytes) -> RequestHead:
    match = REQUEST_HEAD.fullmatch(constant)
    if match is None:
        raise _malformed()
    fields = _joined(fields_of(constant))
    method, minor = match[1].decode("ascii"), int(match[3])
    if method not in METHODS:
        msg = f"no path takes the method {method[:32]}"
        raise MethodNotAllowed(msg, METHODS)
    target = read_target(match[1], match[2])
    _set_host(fields, target.authority, minor)
    coding = fields.get(b"transfer-encoding")
    if coding is not None and (minor == 0 or coding.lower() != b"chunked"):
        raise _ambiguous()
    tokens = [token.strip() for token in fields.get(b"connection", b"").lower().split(b",")]
    return RequestHead(
        method=method,
        path=target.path,
        query=target.query,
        minor=minor,
        fields={
            name.decode("ascii"): value.decode("utf-8", "surrogateescape")
            for name, value in fields.items()
        },
        keep_alive=minor == 1 and b"close" not in tokens,
        chunked=coding is not None,
        expects_continue=minor == 1 and fields.get(b"expect", b"").lower() == b"100-continue",
    )


def _joined(lines: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return headers by name; the values of one that stands several times are joined."""
    fields: dict[bytes, bytes] = {}
    several: dict[bytes, list[bytes]] = {}
    for name, value in lines:
        if name not in fields:
            fields[name] = value
        elif name in _SINGLE_FIELDS:
            raise _repeated(name)
        else:
            several.setdefault(name, [fields[name]]).append(value)
    for name, values in several.items():
        fields[name] = b", ".join(values)
    return fields


def _set_host(fields: dict[bytes, bytes], authority: str | None, minor: int) -> None:
    """See to the Host header: where the target names a host, nothing else counts."""
    if authority is not None:
        fields[b"host"] = authority.encode()
    elif minor == 1 and b"host" not in fields:
        msg = "the Host header is missing"
        raise BadRequest(msg)


_remembered = lru_cache(maxsize=_REMEMBERED_HEADS)(_parse)


def _malformed() -> BadRequest:
    return BadRequest("the request head is malformed")


def _ambiguous() -> BadRequest:
    msg = "the framing of the body is ambiguous (Content-Length, Transfer-Encoding)"
    return BadRequest(msg)


def _repeated(name: bytes) -> BadRequest:
    return BadRequest(f"more than one {name.decode()} header")
