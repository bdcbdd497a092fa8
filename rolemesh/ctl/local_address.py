"""The addresses of this host, as other hosts see them; no packet is sent to find them."""

import contextlib
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SIOCGIFADDR: Final = 0x8915
"""Asks for an interface's IPv4 address (netdevice(7))."""

_IFREQ: Final = struct.Struct("16s24x")
_ADDRESS_AT: Final = slice(20, 24)

_ELSEWHERE: Final = "192.0.2.1"
"""An address that belongs to nobody (RFC 5737): the way to it is the way out."""

_INTERFACES_V6: Final = Path("/proc/net/if_inet6")
_SCOPE_GLOBAL: Final = "00"


def address_toward(host: str, port: int) -> str:
    """Return the address this host uses toward another; raises OSError where there is no way."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        local: str = probe.getsockname()[0]
    return local


def outward_addresses() -> tuple[str, ...]:
    """Return where other hosts may reach this one, the likeliest first."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        found.append(address_toward(_ELSEWHERE, 1))
    found += (*_interfaces_v4(), *_interfaces_v6())
    unique = dict.fromkeys(found)
    return tuple(each for each in unique if not is_local_only(each))


def is_local_only(host: str) -> bool:
    """Tell whether no other host can reach this one by an address or name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def is_wildcard(host: str) -> bool:
    """Tell whether it stands for every address of this host."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def in_url(host: str) -> str:
    """Return an address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def _interfaces_v4() -> Iterator[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has none
                reply = fcntl.ioctl(any_socket, _SIOCGIFADDR, _IFREQ.pack(name.encode()))
                yield socket.inet_ntoa(reply[_ADDRESS_AT])


def _interfaces_v6() -> Iterator[str]:
    """Yield the global addresses that proc(5) lists: address, index, length, scope, flags, name."""
    try:
        lines = _INTERFACES_V6.read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for digits, _, _, scope, *_ in map(str.split, lines):
        if scope == _SCOPE_GLOBAL:
            yield str(ipaddress.IPv6Address(bytes.fromhex(digits)))
