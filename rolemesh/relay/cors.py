"""Cross-origin requests: what lets a web page from elsewhere read replies (the Fetch standard, CORS).

Off by default. A page that may read is named by its origin, or `*` stands for all. Keys are sent as
headers, never as cookies, so no reply allows credentials, and `*` gives away nothing that a caller
without a browser would not get.
"""

import re
from functools import lru_cache
from typing import Final

from rolemesh.relay.replies import Fields

_ANY: Final = "*"
_EXPOSED: Final = ", ".join(
    (
        "Retry-After",
        "X-Request-Id",
        "X-RoleMesh-Attempts",
        "X-RoleMesh-Fallback",
        "X-RoleMesh-Instance",
        "X-RoleMesh-Model",
        "X-RoleMesh-Node",
        "X-RoleMesh-Queue-Ms",
    )
)
_HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9-]{1,64}(?: *, *[A-Za-z0-9-]{1,64}){0,63}")
_USUAL_HEADERS: Final = "Authorization, Content-Type, X-Api-Key, X-Request-Id"
_MAX_AGE_S: Final = 7200
"""How long a browser may remember a preflight; none of them remembers it longer."""


def is_allowed(origin: str, allowed: tuple[str, ...]) -> bool:
    """Tell whether pages of an origin may read replies."""
    return _ANY in allowed or origin in allowed


@lru_cache(maxsize=256)
def cors_fields(origin: str | None, allowed: tuple[str, ...]) -> Fields:
    """Return the headers that every reply to a request with this Origin has."""
    if not allowed:
        return ()
    if _ANY in allowed:
        return (
            (("Access-Control-Allow-Origin", _ANY), ("Access-Control-Expose-Headers", _EXPOSED))
            if origin
            else ()
        )
    # What one page is told must not be kept for another one.
    vary = (("Vary", "Origin"),)
    if origin not in allowed:
        return vary
    return (
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Expose-Headers", _EXPOSED),
        *vary,
    )


def preflight_fields(
    origin: str | None, allowed: tuple[str, ...], *, methods: str, headers: str | None
) -> Fields:
    """Return what the reply to an OPTIONS request has besides `cors_fields`.

    `methods` are those of the path, `headers` what the page asks to send (Access-Control-Request-
    Headers). Nothing for an origin that is not allowed.
    """
    if not origin or not is_allowed(origin, allowed):
        return ()
    wanted = headers if headers and _HEADER_NAMES.fullmatch(headers) else _USUAL_HEADERS
    return (
        ("Access-Control-Allow-Methods", methods),
        ("Access-Control-Allow-Headers", wanted),
        ("Access-Control-Max-Age", str(_MAX_AGE_S)),
    )
