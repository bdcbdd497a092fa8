"""Opens a connection to a D-Bus bus, and closes it again if that fails half-way.

jeepney's own opener leaves the socket to the garbage collector when the bus goes away, or the
caller's patience ends, in the middle of the handshake; that happens at every restart of the bus.
"""

import asyncio

from jeepney import message_bus
from jeepney.auth import BEGIN, Authenticator
from jeepney.bus import get_bus
from jeepney.io.asyncio import DBusConnection, DBusRouter, Proxy


async def open_connection(address: str) -> DBusConnection:
    """Connect to the bus at `address` (as in $DBUS_SYSTEM_BUS_ADDRESS) and say Hello.

    Raises OSError, EOFError, RouterClosed or AuthenticationError.
    """
    reader, writer = await asyncio.open_unix_connection(get_bus(address))
    try:
        await _authenticate(reader, writer)
        connection = DBusConnection(reader, writer)
        # The first message has to be this; its answer is our unique name.
        async with DBusRouter(connection) as router:
            (connection.unique_name,) = await Proxy(message_bus, router).Hello()
    except BaseException:
        writer.close()
        raise
    return connection


async def _authenticate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    authenticator = Authenticator()
    for request in authenticator:
        writer.write(request)
        await writer.drain()
        reply = await reader.read(1024)
        if not reply:
            msg = "the bus closed the connection before the authentication"
            raise EOFError(msg)
        authenticator.feed(reply)
    writer.write(BEGIN)
    await writer.drain()
