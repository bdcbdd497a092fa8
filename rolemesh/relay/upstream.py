"""Connections to upstreams and the pool that keeps idle ones.

A connection serves one receiver at a time. llama-server closes a connection that was idle for
5 s and holds a thread for each open one, so idle ones are few and dropped earlier; one found dead
on reuse is the reason why `exchange` and `fetch` try once more on a fresh one.
"""

import asyncio
import os
import ssl
from collections import deque
from typing import Any, Final, Protocol, cast

from rolemesh.address import UpstreamAddress
from rolemesh.errors import ConnectFailed, NotVerified
from rolemesh.relay.deadlines import Deadlines, Timed
from rolemesh.relay.outbox import Outbox

IDLE_LIMIT_S: Final = 4.0

_REMEDIES: Final = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS: is the URL's https:// right?",
    "HTTP_REQUEST": "it does not speak TLS: is the URL's https:// right?",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it requires a client certificate (tls.cert_file)",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it accepts no TLS of ours, or requires a client certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust the client certificate (tls.cert_file)",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not accept the client certificate (tls.cert_file)",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the client certificate (tls.cert_file) has expired",
}


_SAID_NOTHING: Final = (
    "the connection closed without a word; in TLS some servers refuse a client certificate so "
    "(tls.cert_file)"
)


class Receiver(Protocol):
    """What takes the bytes of a connection while it uses it."""

    def upstream_data(self, data: bytes) -> None:
        """Take bytes."""

    def upstream_closed(self, cause: Exception | None) -> None:
        """Learn that no more will come: the upstream ended (None), or the connection broke."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to an upstream."""

    __slots__ = ("address", "closed", "idle_since", "receiver", "reused", "transport")

    def __init__(self, address: UpstreamAddress) -> None:
        self.address = address
        self.receiver: Receiver | None = None
        self.closed = False
        self.reused = False
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.receiver is None:
            self.abort()  # bytes nobody asked for: what they answer is unknowable
        else:
            self.receiver.upstream_data(data)

    def eof_received(self) -> bool:
        self.closed = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.upstream_closed(exc)

    def abort(self) -> None:
        """Close now; the receiver is not told."""
        self.closed = True
        self.receiver = None
        self.transport.abort()


class _TlsConnection(UpstreamConnection):
    """One connection in TLS.

    With TLS 1.3 a server refuses our certificate only after the handshake, and some just close.
    """

    __slots__ = ("_heard",)

    def __init__(self, address: UpstreamAddress) -> None:
        super().__init__(address)
        self._heard = False

    def data_received(self, data: bytes) -> None:
        self._heard = True
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, ssl.SSLError):
            exc = OSError(_cause(exc))
        elif not self._heard:
            exc = OSError(_SAID_NOTHING)
        super().connection_lost(exc)


class Attempt(Timed, Protocol):
    """An exchange under way, as the pool watches over it."""

    address: UpstreamAddress
    awaits_first_byte: bool

    def give_up(self) -> None:
        """Stop waiting: nothing will come."""


class UpstreamPool:
    """Idle connections by address, last used first, and the attempts under way."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle: dict[str, deque[UpstreamConnection]] = {}  # by the key of the address
        self.attempts: Deadlines[Attempt] = Deadlines(self._loop)
        self.clock = self._loop.time
        self.outbox = Outbox(self._loop, self.attempts.items)

    def give_up(self, address: UpstreamAddress) -> None:
        """Stop waiting for an upstream that is gone; answers that have begun go on."""
        for idle in self._idle.values():
            while idle and _are_one(idle[0].address, address):
                idle.popleft().abort()
        for attempt in tuple(self.attempts.items):
            if attempt.awaits_first_byte and _are_one(attempt.address, address):
                attempt.give_up()

    def take_idle(self, address: UpstreamAddress) -> UpstreamConnection | None:
        """Return an idle connection that is likely alive, or None."""
        idle = self._idle.get(address.key)
        while idle:
            connection = idle.pop()
            if connection.closed:
                continue
            if self.clock() - connection.idle_since > IDLE_LIMIT_S:
                connection.abort()
                continue
            connection.reused = True
            return connection
        return None

    async def connect(self, address: UpstreamAddress, connect_s: float) -> UpstreamConnection:
        """Open a fresh connection; raises ConnectFailed."""
        kind, tls = UpstreamConnection, dict[str, Any]()
        if address.server_name:
            assert address.tls is not None
            kind, tls = _TlsConnection, {"ssl": address.tls, "server_hostname": address.server_name}

        def factory() -> UpstreamConnection:
            return kind(address)

        try:
            async with asyncio.timeout(connect_s):
                if address.socket_path:
                    _, made = await self._loop.create_unix_connection(factory, address.socket_path)
                else:
                    _, made = await self._loop.create_connection(
                        factory, address.host, address.port, **tls
                    )
        except TimeoutError as err:
            msg = f"no connection to {address} within {connect_s:g} s"
            raise ConnectFailed(msg, upstream=str(address)) from err
        except ssl.SSLCertVerificationError as err:
            msg = f"no connection to {address}: {_cause(err)}"
            raise NotVerified(msg, upstream=str(address)) from err
        except (OSError, ValueError) as err:  # ValueError: a name that cannot be looked up
            msg = f"no connection to {address}: {_cause(err)}"
            raise ConnectFailed(msg, upstream=str(address)) from err
        return made

    def give_back(self, connection: UpstreamConnection, now: float) -> None:
        """Keep a connection whose exchange ended cleanly, and no longer those not needed lately.

        So never more are kept than were in use at once in the last IDLE_LIMIT_S.
        """
        connection.receiver = None
        if connection.closed:
            return
        connection.idle_since = now
        key = connection.address.key
        idle = self._idle.get(key)
        if idle is None:
            idle = self._idle[key] = deque()
        idle.append(connection)
        while idle and now - idle[0].idle_since > IDLE_LIMIT_S:
            idle.popleft().abort()

    def close(self) -> None:
        """Close every idle connection."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()


def _are_one(one: UpstreamAddress, other: UpstreamAddress) -> bool:
    """Tell whether two addresses lead to one place, whatever verifies it."""
    return one.name == other.name and one.host == other.host


def _cause(err: OSError | ValueError) -> str:
    """Return what went wrong in the system's own words, which asyncio's text leaves out."""
    if isinstance(err, ssl.SSLCertVerificationError):
        why = err.verify_message.rstrip(".")
        return f"its certificate is not accepted: {why} (tls.ca_file says whom to trust)"
    if isinstance(err, ssl.SSLError):
        reason = err.reason or str(err)
        return _REMEDIES.get(reason, f"TLS failed: {reason.replace('_', ' ').lower()}")
    if isinstance(err, OSError) and err.errno is not None and err.errno > 0:
        return os.strerror(err.errno)
    return str(err)
