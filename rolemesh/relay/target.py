"""What a request is for: the target of its first line (RFC 9112 section 3.2), in one spelling.

Clients put paths together from a base URL and a rest, so a slash too many is common: `//`, and a `/`
at the end, count as one and as none. What may be written with and without percent-encoding (RFC
3986 section 2.3) is read as written without. Everything else stands as it was sent; the query,
which no inference path reads, too.
"""

import re
from dataclasses import dataclass
from typing import Final

from rolemesh.errors import BadRequest

_ABSOLUTE: Final = re.compile(rb"https?://(?P<authority>[^/?]+)(?P<rest>.*)", re.IGNORECASE)
_AUTHORITY: Final = re.compile(rb"(?:[0-9a-z._~-]+|\[[0-9a-f:.]+\])(?::[0-9]{0,5})?", re.IGNORECASE)
_SLASHES: Final = re.compile(rb"//+")
_ENCODED: Final = re.compile(rb"%([0-9A-Fa-f]{2})?")
_UNRESERVED: Final = frozenset(
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"
)
_NOT_IN_URLS: Final = tuple((bytes((byte,)), b"%%%02X" % byte) for byte in b'"<>\\^`{|}')

_LONGEST_PATH: Final = 2048
"""A longer path is none that there is, and not worth a closer look."""


@dataclass(frozen=True, slots=True)
class Target:
    """A target: `query` without its `?`, `authority` where the target named one."""

    path: str
    query: str
    authority: str | None = None


def read_target(method: bytes, target: bytes) -> Target:
    """Return what a target (printable ASCII) says; raises BadRequest when it is none."""
    authority = None
    if not target.startswith(b"/"):
        if target == b"*" and method == b"OPTIONS":
            return Target("*", "")
        match = _ABSOLUTE.fullmatch(target)
        if match is None or _AUTHORITY.fullmatch(match["authority"]) is None:
            raise _malformed()
        authority, target = match["authority"].decode("ascii"), match["rest"]
    if b"#" in target:
        raise _malformed()
    for byte, encoded in _NOT_IN_URLS:
        target = target.replace(byte, encoded)
    path, _, query = target.partition(b"?")
    if b"%" in path and len(path) <= _LONGEST_PATH:
        path = _ENCODED.sub(_decode, path)
    if b"//" in path or path.endswith(b"/"):
        path = _SLASHES.sub(b"/", path).rstrip(b"/")
    return Target((path or b"/").decode("ascii"), query.decode("ascii"), authority)


def _decode(match: re.Match[bytes]) -> bytes:
    if match[1] is None:
        return b"%25"  # a percent sign that stands for itself
    byte = int(match[1], 16)
    return bytes((byte,)) if byte in _UNRESERVED else match[0].upper()


def _malformed() -> BadRequest:
    return BadRequest("the target of the request is malformed")
