"""Who may call: keys, source addresses, and the rule for a daemon that asks for no key.

A daemon on a loopback address may go without keys. Then a web page in a browser on the same
machine could call it too (by its own origin, or by a name rebound to 127.0.0.1), so foreign Origin
and Host headers are refused. Origins whose pages may read replies anyhow are not foreign.
"""

import ipaddress
import socket
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import urlsplit

from rolemesh.config.settings import Network
from rolemesh.errors import NotAllowed
from rolemesh.relay import cors
from rolemesh.runtime.keys import KeyRing, Principal
from rolemesh.runtime.listeners import is_loopback

Field = Callable[[str], str | None]
"""Gives a request header by its lower-case name."""


class Access:
    """The admission rule of one group of paths.

    `networks` are the source networks allowed (None: any). `local_only` refuses whoever does not
    address this machine by a local name, and pages of any origin but local ones and `origins`.
    """

    def __init__(
        self,
        keys: KeyRing,
        networks: tuple[Network, ...] | None,
        *,
        local_only: bool,
        origins: tuple[str, ...] = (),
    ) -> None:
        self._keys = keys
        self._origins = origins
        self._networks = networks
        self._local_only = local_only

    def identify(self, peer: str, field: Field) -> Principal:
        """Return who calls; raises NotAuthenticated or NotAllowed."""
        if self._networks is not None and not _within(peer, self._networks):
            msg = f"{peer} is outside the networks allowed here"
            raise NotAllowed(msg)
        if self._local_only:
            _require_local_peer(peer)
            origin = field("origin")
            if origin and cors.is_allowed(origin, self._origins):
                origin = None
            _require_local(field("host"), origin)
        return self._keys.identify(field("authorization"), field("x-api-key"))

    def present(self, principal: Principal) -> Principal | None:
        """Return what rights somebody identified before has now, None if his key is gone."""
        return self._keys.present(principal)


@lru_cache(maxsize=4096)
def _within(peer: str, networks: tuple[Network, ...]) -> bool:
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in network for network in networks)


@lru_cache(maxsize=1024)
def _require_local_peer(peer: str) -> None:
    if peer != "unix" and not is_loopback(peer):
        msg = f"without keys only callers on this machine are served, not {peer}"
        raise NotAllowed(msg)


def _require_local(host: str | None, origin: str | None) -> None:
    for name, value in (("Host", host and f"//{host}"), ("Origin", origin)):
        if value and not _is_local(_hostname(value)):
            msg = (
                f"the {name} header names another machine ({value.removeprefix('//')}); without "
                "keys only local callers are served"
            )
            raise NotAllowed(msg)


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


@lru_cache(maxsize=1024)
def _is_local(hostname: str | None) -> bool:
    if hostname in ("localhost", socket.gethostname().lower()):
        return True
    try:
        return hostname is not None and ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False
