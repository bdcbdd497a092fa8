"""Accepted keys and who they belong to. Only digests are held; comparison takes constant time."""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from rolemesh.config.settings import ClientKey, Priority
from rolemesh.errors import NotAuthenticated
from rolemesh.names import Alias

_REMEMBERED_LENGTH: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who a key belongs to, and what it may; see ClientKey. `digest` is that of the key."""

    name: str
    roles: frozenset[Alias] | None = None
    priority: Priority | None = None
    max_concurrent: int | None = None
    requests_per_minute: int | None = None
    admin: bool = False
    digest: bytes = field(default=b"", repr=False)


ANYONE = Principal(name="-", admin=True)
"""The principal of a caller where no key is asked for."""


def digest_of(key: str) -> bytes:
    """Return what is kept and compared in place of a key, which need not be UTF-8."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class KeyRing:
    """A set of accepted keys; an empty one asks nobody for a key."""

    def __init__(self, keys: Iterable[ClientKey]) -> None:
        self._by_digest = {key.digest: (key.digest, _principal(key)) for key in keys}

    def __bool__(self) -> bool:
        return bool(self._by_digest)

    def present(self, principal: Principal) -> Principal | None:
        """Return who the key of somebody identified before belongs to now, None if to nobody.

        Who has shown no key stays who he was.
        """
        if not principal.digest:
            return principal
        return self._by_digest.get(principal.digest, (b"", None))[1]

    def identify(self, authorization: str | None, x_api_key: str | None) -> Principal:
        """Return whose key a request carries; raises NotAuthenticated.

        `authorization` and `x_api_key` are the values of those headers; the former counts when
        both are there and it is a Bearer key.
        """
        if not self._by_digest:
            return ANYONE
        is_usual = len(authorization or "") + len(x_api_key or "") <= _REMEMBERED_LENGTH
        digest = (_remembered if is_usual else _digest)(authorization, x_api_key)
        if digest is None:
            msg = "a key is required: send it as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'"
            raise NotAuthenticated(msg)
        known, principal = self._by_digest.get(digest, (b"", ANYONE))
        if not hmac.compare_digest(known, digest):
            msg = "the key is not known here"
            raise NotAuthenticated(msg)
        return principal


def _principal(key: ClientKey) -> Principal:
    return Principal(
        name=key.name,
        roles=key.roles,
        priority=key.priority,
        max_concurrent=key.max_concurrent,
        requests_per_minute=key.requests_per_minute,
        admin=key.admin,
        digest=key.digest,
    )


def _digest(authorization: str | None, x_api_key: str | None) -> bytes | None:
    """Return the digest of the key that a request carries, None when it carries none."""
    presented = _bearer(authorization) or x_api_key
    return digest_of(presented) if presented else None


_remembered = lru_cache(maxsize=512)(_digest)


def _bearer(authorization: str | None) -> str | None:
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None
