"""Clients that read slowly what is made fast: the gateway holds back instead of hoarding."""

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

from tests.fakes.upstream import CHUNKED_STREAM, Conversation, chunk, upstream
from tests.integration.conftest import StartDaemon
from tests.integration.talk import CHAT, asks_for, busy_slots, endless_model, is_idle
from tests.lab.mesh import Daemon, instance_is_ready, usable_models
from tests.lab.poll import eventually

SLOW_S = 20.0
GROWTH_BYTES = 2 * 1024 * 1024
TALKATIVE: dict[str, Any] = {"logprobs": True, "top_logprobs": 20}  # some kilobytes a token


def resident_bytes(daemon: Daemon) -> int:
    """Return how much memory a daemon has."""
    status = Path(f"/proc/{daemon.program.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


async def ask(gateway: Daemon, alias: str) -> socket.socket:
    """Ask for a stream on a connection that takes in little by itself."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    own.setblocking(False)
    host, port = gateway.url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    await loop.sock_connect(own, (host, int(port)))
    body = json.dumps(asks_for(60_000, alias, stream=True, **TALKATIVE)).encode()
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    await loop.sock_sendall(own, head % (CHAT.encode(), len(body)) + body)
    return own


async def flood(conversation: Conversation) -> None:
    """Stream as fast as it is taken, far more than will be."""
    await conversation.send(CHUNKED_STREAM)
    events = chunk(b"data: %b\n\n" % (b"x" * 1000) * 64)
    while conversation.sent_bytes < 100 * GROWTH_BYTES:
        await conversation.send(events)
    await conversation.hung_up()


async def test_slow_readers_of_fast_streams_cost_no_memory(
    start_gateway: StartDaemon, start_agent: StartDaemon
) -> None:
    """One stream is llama-server's, the other one faster than any of those."""
    async with upstream(flood) as fast:
        models = {"flood": {"type": "proxy", "proxy_url": fast.url}}
        gateway = await start_gateway({"aliases": {"from_roles": True}, "models": models})
        entry = {**endless_model("endless-gguf", "talker", parallel=1), "context_size": 65536}
        configuration = {"models": [entry], "instances": {"cpu0": {"model": "endless-gguf"}}}
        agent = await start_agent("box", configuration, gateway)
        await eventually(lambda: both_usable(gateway), what="both usable", deadline_s=30)
        await eventually(lambda: instance_is_ready(agent), what="cpu0 ready", deadline_s=30)
        loop = asyncio.get_running_loop()

        with await ask(gateway, "flood") as reader:  # what the first stream takes is kept
            for _ in range(1000):
                assert await loop.sock_recv(reader, 65536)
        await eventually(lambda: not fast.writers, what="the flood has ended")

        with await ask(gateway, "flood") as one, await ask(gateway, "talker") as other:
            for reader in (one, other):
                assert await loop.sock_recv(reader, 1024)
            before = most = resident_bytes(gateway)
            ends_at = time.monotonic() + SLOW_S
            while time.monotonic() < ends_at:
                await asyncio.sleep(0.2)  # that is how slow they are
                for reader in (one, other):
                    assert await loop.sock_recv(reader, 1024)
                most = max(most, resident_bytes(gateway))
            assert await busy_slots(agent) == 1
            sent = fast.conversations[-1].sent_bytes
        assert most - before < GROWTH_BYTES
        assert sent > GROWTH_BYTES  # which the kernel holds
        await eventually(lambda: is_idle(agent), what="the slot is free", deadline_s=5)


async def both_usable(gateway: Daemon) -> bool:
    return {"flood", "talker"} <= await usable_models(gateway)
