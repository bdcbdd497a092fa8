"""Syntax of HTTP/1 heads (RFC 9112), checked here because httptools 0.1.1 is lenient.

Old http-parser accepts bare LF, obsolete line folding and space before the colon, each of which
another hop may read differently (request smuggling). A head that does not match exactly is
refused.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from http import HTTPStatus
from typing import Final

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_FIELD: Final = _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n"

REQUEST_HEAD: Final = re.compile(
    rb"(" + _TOKEN + rb") ([\x21-\x7e]++) HTTP/1\.([01])\r\n(?:" + _FIELD + rb")*+\r\n"
)
"""A whole request head; groups: method, target, minor version."""

RESPONSE_HEAD: Final = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*+)?\r\n(?:" + _FIELD + rb")*+\r\n"
)
"""A whole response head; groups: minor version, status."""

DROPPED_FROM_REPLY: Final = frozenset(
    {
        # hop-by-hop (RFC 9110 section 7.6.1), and framing, which is ours to write
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
        # what an upstream (or an agent) says about itself and its callers does not hold for us
        b"server",
        b"date",
        b"x-request-id",
        b"x-rolemesh-attempts",
        b"x-rolemesh-fallback",
        b"x-rolemesh-model",
        b"x-rolemesh-node",
        b"x-rolemesh-queue-ms",
        b"access-control-allow-origin",
        b"access-control-allow-credentials",
        b"access-control-allow-methods",
        b"access-control-allow-headers",
        b"access-control-expose-headers",
        b"access-control-max-age",
        b"alt-svc",
        b"set-cookie",
        b"strict-transport-security",
    }
)
"""Response headers of an upstream that are not passed on (lower case)."""


def fields_of(head: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the headers of a whole head of correct syntax, names in lower case."""
    for line in head.split(b"\r\n")[1:-2]:
        name, _, value = line.partition(b":")
        yield name.lower(), value.strip(b" \t")


@cache
def status_line(status: int) -> bytes:
    """Return the first line of a response; an unknown status gets an empty reason phrase."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode())


def end_to_end(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the lines of those headers of an upstream's response that cross this hop.

    Left out are DROPPED_FROM_REPLY and what the upstream itself named in Connection.
    """
    fields = tuple(fields)
    named = {
        option.strip()
        for name, value in fields
        if name == b"connection"
        for option in value.lower().split(b",")
    }
    dropped = DROPPED_FROM_REPLY | named
    return b"".join(b"%b: %b\r\n" % field for field in fields if field[0] not in dropped)


def chunk(data: bytes) -> bytes:
    """Return data framed as one chunk (RFC 9112 section 7.1); none at all for no data."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def encode_fields(fields: tuple[tuple[str, str], ...]) -> bytes:
    """Return header lines; raises ValueError on a name or value that could inject another line."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields).encode("latin-1", "replace")
    if lines.count(b"\n") != len(fields) or lines.count(b"\r") != len(fields):
        msg = "a header value contains a line break"
        raise ValueError(msg)
    return lines


@lru_cache(maxsize=1024)
def start_line(prefix: str, path: str) -> bytes:
    """Return the first line of a request to an upstream."""
    return f"POST {prefix}{path} HTTP/1.1\r\n".encode()


@lru_cache(maxsize=256)
def accept_line(accept: str) -> bytes:
    """Return the header line that says what a client takes."""
    return encode_fields((("Accept", accept),))
