"""NVML as the real binding reads it, from a library that is not real."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from rolemesh.agent.nvml import Nvml
from tests.lab.nvml import FINE, FakeGpus

READ_ONCE = """
import asyncio
from rolemesh.agent.nvml import Nvml
sample = asyncio.run(Nvml().read())
print(len(sample.readings), "|".join(sample.problems))
"""


def read_in_a_new_process(environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", READ_ONCE],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
    )
    return done.stdout.strip()


async def test_gpus_are_read_with_what_they_tell(fake_gpus: FakeGpus) -> None:
    first = fake_gpus.add("NVIDIA H200", total_mib=143771)
    second = fake_gpus.add()
    fake_gpus.use(first, used_mib=1024)
    fake_gpus.set_load(first, utilisation=37, temperature=61)
    nvml = Nvml()
    sample = await nvml.read()
    await nvml.close()
    assert [reading.uuid for reading in sample.readings] == [first, second]
    h200 = sample.readings[0]
    assert (h200.name, h200.memory_total_mib) == ("NVIDIA H200", 143771)
    assert h200.memory_used_mib is not None
    assert h200.memory_used_mib >= 1024
    assert (h200.utilisation, h200.temperature_c) == (37, 61)
    assert sample.driver_version
    assert sample.problems == ()


async def test_a_lost_card_is_a_problem_and_the_others_are_read(fake_gpus: FakeGpus) -> None:
    lost, fine = fake_gpus.add(), fake_gpus.add()
    nvml = Nvml()
    assert len((await nvml.read()).readings) == 2
    fake_gpus.lose(lost)
    sample = await nvml.read()
    assert [reading.uuid for reading in sample.readings] == [fine]
    assert len(sample.problems) == 1
    assert "card 0 cannot be read" in sample.problems[0]
    fake_gpus.recover(lost)
    assert len((await nvml.read()).readings) == 2
    await nvml.close()


async def test_a_driver_that_is_not_loaded_is_named_and_comes_back(fake_gpus: FakeGpus) -> None:
    fake_gpus.add()
    fake_gpus.fail_init()
    nvml = Nvml()
    sample = await nvml.read()
    assert sample.readings == ()
    assert "kernel driver is not loaded" in sample.problems[0]
    fake_gpus.fail_init(FINE)
    assert len((await nvml.read()).readings) == 1
    await nvml.close()


async def test_a_machine_without_cards_has_no_problem(fake_gpus: FakeGpus) -> None:
    nvml = Nvml()
    sample = await nvml.read()
    await nvml.close()
    await nvml.close()
    assert (sample.readings, sample.problems) == ((), ())
    del fake_gpus


def test_without_the_drivers_library_the_package_that_brings_it_is_named() -> None:
    if read_in_a_new_process({"LD_LIBRARY_PATH": ""}).startswith("0 no NVIDIA driver library"):
        return
    pytest.skip("this machine has a real NVIDIA driver")


def test_without_the_binding_the_package_that_brings_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text("raise ImportError('no module named pynvml')\n")
    path = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[2])))
    said = read_in_a_new_process({"PYTHONPATH": path})
    assert said.startswith("0 no Python binding to NVML")
    assert "python3-pynvml" in said
