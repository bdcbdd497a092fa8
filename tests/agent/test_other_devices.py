"""Devices that llama-server names."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from rolemesh.agent.other_devices import OtherDevices, read_devices
from rolemesh.config.settings import LlamaServer, NodeSettings
from tests.agent.builders import node_settings
from tests.lab.poll import eventually
from tests.lab.processes import is_running

AMD = "  Vulkan0: AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24100 MiB free)"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return a program that counts how often it is asked, and names one device."""
    path = tmp_path / "llama-server"
    write(path, f"printf '%s\\n' 'Available devices:' '{AMD}'")
    return path


def write(path: Path, command: str) -> None:
    count = path.with_name("asked")
    part = path.with_name("part")
    part.write_text(f'#!/bin/sh\necho "$*" >> {count}\n{command}\n')
    part.chmod(0o755)
    part.rename(path)


def settings_with(program: Path | None, *args: str) -> NodeSettings:
    return node_settings(llama_server=LlamaServer(path=program, args=args))


def asked(program: Path) -> list[str]:
    try:
        return program.with_name("asked").read_text().splitlines()
    except FileNotFoundError:
        return []


def test_devices_are_read_with_their_memory() -> None:
    (device,) = read_devices(f"some line\nAvailable devices:\n{AMD}\n")
    assert (device.uuid, device.kind) == ("Vulkan0", "device")
    assert device.name == "AMD Radeon RX 7900 XTX (RADV NAVI31)"
    assert (device.memory_total_mib, device.memory_used_mib) == (24560, 460)


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (["  (none)"], []),
        (["  BLAS: OpenBLAS (0 MiB, 0 MiB free)"], []),
        (["  RPC0: 127.0.0.1:50152 (24105 MiB, 24105 MiB free)"], ["RPC0"]),
        (["  RPC0[192.0.2.7:5]: 192.0.2.7:5 (7 MiB, 7 MiB free)"], ["RPC0[192.0.2.7:5]"]),
        (["  X0: a card (7 MiB, 7 MiB free) ", "X0: a card (7 MiB, 7 MiB free)"], []),
        (
            [
                "  CUDA0: RTX 3090 (24 MiB, 24 MiB free)",
                "  CUDA1: RTX 3090 (24 MiB, 24 MiB free)",
                "  Vulkan0: RTX 3090 (24 MiB, 24 MiB free)",
                "  Vulkan1: RTX 3090 (NVIDIA) (24 MiB, 24 MiB free)",
                "  Vulkan2: Arc A770 (24 MiB, 24 MiB free)",
            ],
            ["CUDA0", "CUDA1", "Vulkan2"],
        ),
    ],
)
def test_what_is_a_device(lines: list[str], names: list[str]) -> None:
    output = "\n".join(["Available devices:", *lines])
    assert [device.uuid for device in read_devices(output)] == names


async def test_the_program_is_asked_once_with_the_arguments_of_all(program: Path) -> None:
    settings, devices = settings_with(program, "--rpc", "box:50152"), OtherDevices()
    for _ in range(3):
        assert [device.uuid for device in await devices.read(settings)] == ["Vulkan0"]
    assert asked(program) == ["--rpc box:50152 --list-devices"]
    assert devices.problem == ""


async def test_a_reload_asks_again(program: Path) -> None:
    settings, devices = settings_with(program), OtherDevices()
    await devices.read(settings)
    await devices.read(replace(settings))
    assert len(asked(program)) == 2


async def test_another_program_is_asked_again(program: Path) -> None:
    settings, devices = settings_with(program), OtherDevices()
    await devices.read(settings)
    write(program, "echo '  CUDA0: card (7 MiB, 7 MiB free)'")
    assert [device.uuid for device in await devices.read(settings)] == ["CUDA0"]
    os.unlink(program)  # noqa: PTH108
    assert await devices.read(settings) == ()
    assert "No such file" in devices.problem


async def test_without_a_program_there_are_no_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    devices = OtherDevices()
    assert await devices.read(settings_with(None)) == ()
    assert devices.problem == ""


async def test_a_program_that_fails_says_why(program: Path) -> None:
    write(program, "echo 'Failed to connect to box:50152' >&2; kill -ABRT $$")
    devices = OtherDevices()
    assert await devices.read(settings_with(program)) == ()
    assert devices.problem == f"{program} --list-devices: Failed to connect to box:50152"


async def test_a_program_that_does_not_know_the_question_is_no_problem(program: Path) -> None:
    write(program, "echo 'error: invalid argument: --list-devices' >&2; exit 1")
    devices = OtherDevices()
    assert await devices.read(settings_with(program)) == ()
    assert devices.problem == ""


async def test_a_program_that_hangs_is_ended(program: Path, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    write(program, f"sleep 1000 & echo $! > {pid_file}; wait")
    devices = OtherDevices(timeout_s=0.5)
    assert await devices.read(settings_with(program)) == ()
    assert "has not answered within 0.5 s" in devices.problem
    child = int(pid_file.read_text())
    await eventually(lambda: not is_running(child), what="what it started has ended too")


async def test_a_program_that_talks_without_end_is_ended(program: Path) -> None:
    write(program, "exec yes")
    devices = OtherDevices(timeout_s=0.5)
    assert await devices.read(settings_with(program)) == ()
