"""Devices that a real llama-server names: real RPC devices, which need no GPU."""

import socket
from collections.abc import Callable
from contextlib import closing

import pytest

from rolemesh.agent.other_devices import OtherDevices
from rolemesh.config.settings import LlamaServer
from tests.agent.builders import node_settings
from tests.lab.llama_server import NoLlamaServer
from tests.lab.poll import eventually_sync
from tests.lab.processes import Program, free_port
from tests.lab.rpc_devices import RpcPrograms, rpc_programs


@pytest.fixture(scope="module")
def programs() -> RpcPrograms:
    try:
        return rpc_programs()
    except NoLlamaServer as err:
        pytest.skip(str(err))


def is_listening(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.llama
async def test_rpc_devices_are_found(
    programs: RpcPrograms, start_program: Callable[..., Program]
) -> None:
    ports = [free_port() for _ in range(2)]
    for port in ports:
        start_program([programs.rpc_server, "-H", "127.0.0.1", "-p", str(port)])
    eventually_sync(lambda: all(map(is_listening, ports)), what="the devices are served")
    args = ("--rpc", ",".join(f"127.0.0.1:{port}" for port in ports))
    devices = OtherDevices()
    found = await devices.read(
        node_settings(llama_server=LlamaServer(path=programs.llama_server, args=args))
    )
    assert devices.problem == ""
    assert [device.uuid for device in found] == ["RPC0", "RPC1"]
    assert all((device.memory_total_mib or 0) > 0 for device in found)


@pytest.mark.llama
async def test_a_device_that_cannot_be_reached_is_named(programs: RpcPrograms) -> None:
    args = ("--rpc", f"127.0.0.1:{free_port()}")
    devices = OtherDevices()
    settings = node_settings(llama_server=LlamaServer(path=programs.llama_server, args=args))
    assert await devices.read(settings) == ()
    assert "Failed to connect to 127.0.0.1" in devices.problem


@pytest.mark.llama
async def test_a_build_without_devices_has_none(programs: RpcPrograms) -> None:
    devices = OtherDevices()
    settings = node_settings(llama_server=LlamaServer(path=programs.llama_server))
    assert (await devices.read(settings), devices.problem) == ((), "")
