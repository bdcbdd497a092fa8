"""Looking at the machine."""

import logging
from pathlib import Path

import pytest

from rolemesh.agent.gpu_claims import GpuClaims
from rolemesh.agent.gpu_numbers import GpuNumbersFile
from rolemesh.agent.gpu_watch import GpuWatch
from rolemesh.agent.host_watch import HostWatch
from rolemesh.agent.model_check import ModelCheck
from rolemesh.agent.nvml import Nvml
from rolemesh.agent.other_devices import OtherDevices
from rolemesh.names import NodeId
from tests.agent.builders import node_settings
from tests.lab.nvml import FakeGpus


def watch_with(state: Path) -> HostWatch:
    gpus = GpuWatch(
        nvml=Nvml(),
        devices=OtherDevices(),
        numbers=GpuNumbersFile(state),
        claims=GpuClaims(state, node_id=NodeId("box"), config=""),
        shares_units=False,
    )
    return HostWatch(gpus=gpus, models=ModelCheck())


async def test_numbers_of_gpus_survive_the_agent(fake_gpus: FakeGpus, tmp_path: Path) -> None:
    first, second = fake_gpus.add(), fake_gpus.add()
    watch = watch_with(tmp_path)
    seen = await watch.observe(node_settings())
    assert [(gpu.number, gpu.reading.uuid) for gpu in seen.inventory.gpus] == [
        (0, first),
        (1, second),
    ]
    await watch.aclose()
    fake_gpus.remove(first)
    watch = watch_with(tmp_path)
    seen = await watch.observe(node_settings())
    assert [(gpu.number, gpu.reading.uuid) for gpu in seen.inventory.gpus] == [(1, second)]
    assert seen.inventory.lost == {0: first}
    await watch.aclose()


async def test_a_problem_is_logged_once_and_again_when_it_comes_back(
    fake_gpus: FakeGpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    uuid = fake_gpus.add()
    fake_gpus.lose(uuid)
    watch = watch_with(tmp_path)
    for _ in range(3):
        await watch.observe(node_settings())
    assert len(caplog.records) == 1
    fake_gpus.recover(uuid)
    await watch.observe(node_settings())
    fake_gpus.lose(uuid)
    await watch.observe(node_settings())
    assert len(caplog.records) == 2
    await watch.aclose()


async def test_state_that_cannot_be_saved_is_told(fake_gpus: FakeGpus, tmp_path: Path) -> None:
    fake_gpus.add()
    watch = watch_with(tmp_path / "absent")
    seen = await watch.observe(node_settings())
    assert "gpus.json not saved" in seen.state_problem
    await watch.aclose()
