"""The sockets a daemon accepts on, which the service manager keeps over a restart.

Connections that come while no process of the daemon lives wait in the kernel for the next one.
"""

import asyncio
import errno
import ipaddress
import logging
import socket
from collections.abc import Container, Iterable, Mapping
from typing import Any, Final

from rolemesh.config.settings import Listen
from rolemesh.errors import ConfigError, Problem, StartError
from rolemesh.runtime.fd_store import PassedSocket
from rolemesh.runtime.notify import Notifier

logger = logging.getLogger(__name__)

BACKLOG: Final = 4096

STORED_PREFIX: Final = "http-"
"""What the names of stored listeners begin with; those of a .socket unit are not ours to close."""

RELEASE_S: Final = 2.0
"""How long the manager may take to close what it was asked to close."""

_RETRY_S: Final = 0.02

_Address = tuple[Any, ...]
_Places = tuple[tuple[str, ...], int]
_Wanted = Mapping[_Address, tuple[socket.AddressFamily, str]]


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


class Listeners:
    """The listening sockets of a daemon, by address; the manager has a duplicate of each."""

    def __init__(self, notifier: Notifier, passed: Iterable[PassedSocket] = ()) -> None:
        self._notifier = notifier
        self._places: _Places | None = None
        self._open: dict[_Address, PassedSocket] = {}
        for each in passed:
            if self._open.setdefault(each.socket.getsockname(), each) is not each:
                each.socket.close()

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """All of them."""
        return tuple(each.socket for each in self._open.values())

    @property
    def passed(self) -> tuple[PassedSocket, ...]:
        """All of them as another process of this daemon takes them over."""
        return tuple(self._open.values())

    @property
    def port(self) -> int:
        """The port of the first."""
        return int(self.sockets[0].getsockname()[1])

    @property
    def described(self) -> list[str]:
        """Their addresses as people write them: `127.0.0.1:8000`, `[::1]:8000`."""
        names = (address[:2] for address in self._open)  # the sockets may be closed already
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in names]

    async def open(self, listen: Listen) -> None:
        """Take over what was passed and still listens as `listen` says, and bind the rest.

        Raises ConfigError for a .socket unit with another address, and StartError naming address
        and remedy.
        """
        wanted = _resolved(listen)
        surplus = self._open.keys() - wanted.keys()
        for address in surplus:
            if not self._open[address].name.startswith(STORED_PREFIX):
                raise _foreign(self._open[address], wanted)
        for address in surplus:
            self._forget(address).close()
        if self._open:
            names = ", ".join(sorted(map(_described, self._open)))
            logger.info("listening on %s since before this start", names)
        new = await self._bind_missing(wanted, RELEASE_S if surplus else 0.0)
        self._commit(listen, wanted, new)

    async def _bind_missing(
        self, wanted: _Wanted, patience_s: float
    ) -> Mapping[_Address, socket.socket]:
        """Bind what is not open yet; the manager may be about to close what is in the way."""
        end = asyncio.get_running_loop().time() + patience_s
        while True:
            try:
                return _bind_all(wanted, but=self._open)
            except StartError as err:
                cause = err.__cause__
                in_use = isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE
                if not in_use or asyncio.get_running_loop().time() >= end:
                    raise
            await asyncio.sleep(_RETRY_S)

    def change(self, listen: Listen) -> None:
        """Listen as `listen` says from now on; raises ConfigError and changes nothing.

        Sockets that it does not name any more are not closed here: who accepts on them does that.
        """
        if (listen.host, listen.port) == self._places:
            return  # bound to any free port, they would not be found again
        try:
            wanted = _resolved(listen)
            new = _bind_all(wanted, but=self._open)
        except StartError as err:
            ours = any(address[1] == listen.port for address in self._open)
            hint = " (this daemon itself listens on that port: restart it)" if ours else ""
            problem = Problem(where="listen", key="", message=f"{err}{hint}")
            raise ConfigError((problem,)) from err
        self._commit(listen, wanted, new)

    def _commit(
        self, listen: Listen, wanted: _Wanted, new: Mapping[_Address, socket.socket]
    ) -> None:
        self._places = (listen.host, listen.port)
        for address in self._open.keys() - wanted.keys():
            self._forget(address)
        for address, bound in new.items():
            name = _name_of(address)
            self._open[address] = PassedSocket(name=name, socket=bound)
            self._notifier.store(name, bound.fileno())

    def _forget(self, address: _Address) -> socket.socket:
        """Have the manager close its duplicate of a listener; returns our own."""
        gone = self._open.pop(address)
        if gone.name.startswith(STORED_PREFIX):
            self._notifier.unstore(gone.name)
        return gone.socket

    def close(self) -> None:
        """Close what is open here; the manager's duplicates go on listening."""
        for each in self._open.values():
            each.socket.close()


def _name_of(address: _Address) -> str:
    """Return the name an address is stored under, in which a colon may not stand."""
    host, port = address[:2]
    return f"{STORED_PREFIX}{host}-{port}".replace(":", "_")


def _foreign(passed: PassedSocket, wanted: _Wanted) -> ConfigError:
    found = passed.socket.getsockname()
    names = ", ".join(map(_described, wanted))
    message = (
        f"the socket unit passes {_described(found)}, but the configuration says {names}; "
        "make ListenStream= and listen: say the same"
    )
    return ConfigError(
        (Problem(where=passed.name or "socket unit", key="listen", message=message),)
    )


def _described(address: _Address | str) -> str:
    return address if isinstance(address, str) else f"{address[0]} port {address[1]}"


def bind(listen: Listen) -> list[socket.socket]:
    """Return one listening socket per address; raises StartError naming address and remedy."""
    return list(_bind_all(_resolved(listen), but=()).values())


def _bind_all(wanted: _Wanted, *, but: Container[_Address]) -> dict[_Address, socket.socket]:
    new: dict[_Address, socket.socket] = {}
    try:
        for address, (family, host) in wanted.items():
            if address not in but:
                bound = _bind_one(family, address, host, address[1])
                new[bound.getsockname()] = bound
    except BaseException:
        for bound in new.values():
            bound.close()
        raise
    return new


def _resolved(listen: Listen) -> dict[_Address, tuple[socket.AddressFamily, str]]:
    """Return every address to listen on, with its family and the host that named it."""
    found: dict[_Address, tuple[socket.AddressFamily, str]] = {}
    for host in listen.host:
        for family, address in _resolve(host, listen.port):
            found.setdefault(address, (family, host))
    return found


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, _Address]]:
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except OSError as err:
        msg = f"cannot listen on {host}: {err.strerror or err} (listen.host, or --host)"
        raise StartError(msg) from err
    return [(family, address) for family, _, _, _, address in found]


def _bind_one(
    family: socket.AddressFamily, address: _Address, host: str, port: int
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
