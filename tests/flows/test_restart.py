"""Restarts of a real gateway under clients that connect all the time: nobody is refused."""

import json
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rolemesh.config.settings import ClientTls
from rolemesh.config.tls import client_context
from tests.fakes.client import connected, post
from tests.fakes.hammer import hammering
from tests.fakes.service import Service, service
from tests.fakes.upstream import sends_and_hangs, upstream
from tests.lab.certificates import Authority
from tests.lab.mesh import PROGRAMS, get_json, write_drop_in
from tests.lab.poll import eventually
from tests.lab.processes import free_port

DRAIN_S = 2


class GatewayService:
    """A gateway that is restarted as systemd does it."""

    def __init__(self, run: Service, drop_ins: Path, port: int) -> None:
        self.run = run
        self.drop_ins = drop_ins
        self.port = port

    def configure(self, **tree: Any) -> None:
        listen = {"host": "127.0.0.1", "port": self.port}
        whole = {"listen": listen, "limits": {"drain_s": DRAIN_S}, **tree}
        write_drop_in(self.drop_ins, "50-test.yaml", whole)

    def statuses(self) -> list[str]:
        return self.run.manager.values("STATUS")


@pytest.fixture
async def gateway(short_path: Path) -> AsyncIterator[GatewayService]:
    drop_ins = short_path / "conf.d"
    drop_ins.mkdir()
    options = (f"--config-dir={drop_ins}", f"--state-dir={short_path / 'state'}")
    async with service(short_path, (PROGRAMS / "rolemesh-gateway", *options)) as run:
        made = GatewayService(run, drop_ins, free_port())
        made.configure()
        yield made


async def is_refused(port: int) -> bool:
    try:
        async with connected(port):
            return False
    except ConnectionRefusedError:
        return True


async def some_more(tally: Any, count: int = 20) -> None:
    """Wait until the clients have been answered a few times more."""
    wanted = tally.answered + count
    await eventually(lambda: tally.answered >= wanted, what="clients are answered", deadline_s=20)


async def test_no_connection_is_refused_over_restarts_and_a_crash(gateway: GatewayService) -> None:
    await gateway.run.start()
    async with hammering(gateway.port) as tally:
        for _ in range(5):
            await some_more(tally)
            await gateway.run.restart()
        await some_more(tally)
        assert (tally.refused, tally.broken) == (0, [])
        await gateway.run.kill()
        await some_more(tally)
    assert tally.refused == 0
    assert len(tally.broken) <= 8  # what the killed process had accepted is lost with it
    assert tally.longest_s < DRAIN_S + 2


async def test_no_handshake_is_broken_over_restarts_and_new_certificates(
    gateway: GatewayService, authority: Authority
) -> None:
    trusting = client_context(ClientTls(ca_file=authority.ca_file))
    listen = {"host": "127.0.0.1", "port": gateway.port}
    gateway.configure(listen={**listen, "tls": authority.sign("first").settings})
    program = await gateway.run.start()
    async with hammering(gateway.port, tls=trusting) as tally:
        for turn in range(3):
            await some_more(tally)
            gateway.configure(listen={**listen, "tls": authority.sign(f"turn-{turn}").settings})
            program.send(signal.SIGHUP)
            await some_more(tally)
            await gateway.run.end()
            program = await gateway.run.start()
        await some_more(tally)
    assert (tally.refused, tally.broken) == (0, [])


async def test_a_new_connection_waits_for_a_stream_no_longer_than_the_drain(
    gateway: GatewayService,
) -> None:
    stream = sends_and_hangs(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\nhi\r\n"
    )
    async with upstream(stream) as up:
        gateway.configure(models={"planner": {"type": "proxy", "proxy_url": up.url}})
        await gateway.run.start()
        async with connected(gateway.port) as client:
            body = json.dumps({"model": "planner", "stream": True}).encode()
            await client.send(post("/v1/chat/completions", body))
            assert b"200 OK" in await client.reader.readuntil(b"hi")
            async with hammering(gateway.port) as tally:
                await some_more(tally)
                await gateway.run.restart()
                await some_more(tally)
    assert (tally.refused, tally.broken) == (0, [])
    assert tally.longest_s < DRAIN_S + 2


async def test_a_stop_ends_the_listening(gateway: GatewayService) -> None:
    await gateway.run.start()
    await gateway.run.stop()
    assert await is_refused(gateway.port)


async def test_a_reload_moves_to_another_address_and_a_restart_finds_it_there(
    gateway: GatewayService,
) -> None:
    program = await gateway.run.start()
    old, gateway.port = gateway.port, free_port()
    gateway.configure()
    program.send(signal.SIGHUP)
    name = f"http-127.0.0.1-{gateway.port}"
    await eventually(lambda: list(gateway.run.manager.stored) == [name], what="moved")
    await eventually(lambda: is_refused(old), what="the old address is closed")
    async with hammering(gateway.port) as tally:
        await some_more(tally)
        await gateway.run.restart()
        await some_more(tally)
    assert (tally.refused, tally.broken) == (0, [])


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_an_address_that_changed_while_it_was_down_is_bound_anew(
    gateway: GatewayService, host: str
) -> None:
    """0.0.0.0 cannot be bound before the manager has closed 127.0.0.1 of the same port."""
    await gateway.run.start()
    listen = {"host": host, "port": gateway.port if host == "0.0.0.0" else free_port()}
    gateway.configure(listen=listen, auth={"open": True})
    await gateway.run.restart()
    assert list(gateway.run.manager.stored) == [f"http-{host}-{listen['port']}"]
    assert (await get_json(f"http://127.0.0.1:{listen['port']}/health"))[0] == 200


async def test_the_socket_of_a_socket_unit_is_used_and_left_to_its_unit(
    gateway: GatewayService,
) -> None:
    with socket.create_server(("127.0.0.1", gateway.port)) as activated:
        gateway.run.passed = {"rolemesh-gateway.socket": activated.fileno()}
        await gateway.run.start()
        assert (await get_json(f"http://127.0.0.1:{gateway.port}/health"))[0] == 200
        assert gateway.run.manager.stored == {}


async def test_a_socket_unit_that_says_another_address_is_refused(gateway: GatewayService) -> None:
    with socket.create_server(("127.0.0.1", 0)) as activated:
        gateway.run.passed = {"rolemesh-gateway.socket": activated.fileno()}
        with pytest.raises(AssertionError, match="make ListenStream= and listen: say the same"):
            await gateway.run.start()
    assert gateway.run.program is not None
    assert gateway.run.program.status == 78
