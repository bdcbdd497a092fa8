import asyncio
import socket
from contextlib import AsyncExitStack

import pytest

from rolemesh.relay.serving import accepting
from tests.fakes.client import ask, connected
from tests.fakes.serving import echo, serving


async def test_after_the_block_nobody_is_accepted_but_who_is_there_stays() -> None:
    async with serving(echo) as served:
        assert (await ask(served.port, "/completions", b"a")).status == 200
        port = served.port
    with pytest.raises(ConnectionRefusedError):
        async with connected(port):
            await asyncio.sleep(0)


async def test_accepting_follows_the_sockets_it_is_given() -> None:
    async with serving(echo) as served:
        old, new = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in (old, new)]
        async with accepting([old], served.inbound) as server:
            await server.follow([new])
            assert (await ask(ports[1], "/completions", b"a")).status == 200
            with pytest.raises(ConnectionRefusedError):
                await ask(ports[0], "/completions", b"a")
            assert old.fileno() == -1


async def test_whoever_connected_before_the_end_is_answered_now_or_in_the_next_life() -> None:
    async with serving(echo) as served, AsyncExitStack() as clients:
        listener = socket.create_server(("127.0.0.1", 0))
        duplicate, port = listener.dup(), listener.getsockname()[1]
        async with accepting([listener], served.inbound):
            opened = [await clients.enter_async_context(connected(port)) for _ in range(20)]
        async with accepting([duplicate], served.inbound):
            for client in opened:
                assert (await client.post("/completions", b"a")).status == 200


async def test_who_connects_during_a_pause_is_answered_after_it() -> None:
    async with serving(echo) as served:
        listener = socket.create_server(("127.0.0.1", 0))
        async with accepting([listener], served.inbound) as server:
            await server.pause()
            async with connected(listener.getsockname()[1]) as client:
                before = len(served.inbound.connections)
                await server.follow([listener])
                assert (await client.post("/completions", b"a")).status == 200
                assert len(served.inbound.connections) == before + 1
