"""The sockets a daemon accepts on."""

import errno
import ipaddress
import socket
from typing import Final

from rolemesh.config.settings import Listen
from rolemesh.errors import StartError

BACKLOG: Final = 4096


def is_loopback(host: str) -> bool:
    """Tell whether an address (or "localhost") is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def bind(listen: Listen) -> list[socket.socket]:
    """Return one listening socket per address; raises StartError naming address and remedy."""
    sockets: list[socket.socket] = []
    try:
        for host in listen.host:
            for family, address in _resolve(host, listen.port):
                sockets.append(_bind_one(family, address, host, listen.port))
    except BaseException:
        for bound in sockets:
            bound.close()
        raise
    return sockets


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except OSError as err:
        msg = f"cannot listen on {host}: {err.strerror or err} (listen.host, or --host)"
        raise StartError(msg) from err
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]


def _bind_one(
    family: socket.AddressFamily, address: tuple[str, int], host: str, port: int
) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
        bound.setblocking(False)  # noqa: FBT003  # its only parameter
    except OSError as err:
        bound.close()
        raise StartError(_explain(err, host, port)) from err
    return bound


def _explain(err: OSError, host: str, port: int) -> str:
    where = f"cannot listen on {host} port {port}"
    if err.errno == errno.EADDRINUSE:
        return (
            f"{where}: another program has it (`ss -ltnp 'sport = :{port}'` shows which); "
            "stop that program, or choose another port with listen.port or --port"
        )
    if err.errno == errno.EADDRNOTAVAIL:
        return (
            f"{where}: this machine has no such address (`ip address` lists those it has); "
            "correct listen.host or --host"
        )
    if err.errno == errno.EACCES:
        return f"{where}: ports below 1024 need a privilege; choose another with listen.port"
    return f"{where}: {err.strerror}"
