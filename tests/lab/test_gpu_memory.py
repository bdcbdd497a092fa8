"""The memory of fake GPUs, as it follows from processes that others cannot look at."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

from tests.lab.gpu_memory import gpu_memory
from tests.lab.nvml import FakeGpus
from tests.lab.poll import eventually_sync
from tests.lab.processes import Program

MIB = 1 << 20
SIZE_MIB = 10

Start = Callable[..., Program]


@pytest.fixture
def nvml(fake_gpus: FakeGpus) -> Iterator[FakeGpus]:
    """Two GPUs, and the real binding initialised."""
    fake_gpus.add()
    fake_gpus.add()
    pynvml.nvmlInit()
    yield fake_gpus
    pynvml.nvmlShutdown()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "planner-q4.gguf"
    path.write_bytes(b"\0" * SIZE_MIB * MIB)
    return path


def sleeper(model: Path) -> list[str | Path]:
    """Return a process that looks like a llama-server, and only sleeps."""
    return [sys.executable, "-c", "import time; time.sleep(60)", "-m", model]


def used_mib(uuid: str) -> int:
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return int(memory.used) // MIB


def pids(uuid: str) -> list[int]:
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    return [each.pid for each in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]


async def test_memory_is_taken_and_given_back(
    nvml: FakeGpus, model: Path, start_program: Start
) -> None:
    first, second = nvml.uuids
    with gpu_memory(nvml, factor=2.0, overhead_mib=100):
        program = start_program(sleeper(model), {"CUDA_VISIBLE_DEVICES": first})
        eventually_sync(lambda: used_mib(first) == 2 * SIZE_MIB + 100, what="memory taken")
        assert (pids(first), used_mib(second)) == ([program.pid], 0)
        program.send(signal.SIGKILL)
        eventually_sync(lambda: used_mib(first) == 0, what="memory back")


async def test_a_fixed_amount_is_split_over_the_gpus(
    nvml: FakeGpus, model: Path, start_program: Start
) -> None:
    both = ",".join(nvml.uuids)
    with gpu_memory(nvml, fixed_mib={"coder*": 1, "planner*": 900}):
        start_program(sleeper(model), {"CUDA_VISIBLE_DEVICES": both})
        eventually_sync(
            lambda: [used_mib(uuid) for uuid in nvml.uuids] == [450, 450], what="memory taken"
        )


async def test_memory_may_be_held_longer_than_the_process_lives(
    nvml: FakeGpus, model: Path, start_program: Start
) -> None:
    first = nvml.uuids[0]
    with gpu_memory(nvml, fixed_mib={"*": 700}, release_s=60):
        program = start_program(sleeper(model), {"CUDA_VISIBLE_DEVICES": first})
        eventually_sync(lambda: pids(first) == [program.pid], what="the process is seen")
        await program.stop()
        eventually_sync(lambda: pids(first) == [], what="the process is gone")
        assert used_mib(first) == 700


async def test_memory_that_is_held_comes_back_too(
    nvml: FakeGpus, model: Path, start_program: Start
) -> None:
    first = nvml.uuids[0]
    with gpu_memory(nvml, fixed_mib={"*": 700}, release_s=0.2):
        program = start_program(sleeper(model), {"CUDA_VISIBLE_DEVICES": first})
        eventually_sync(lambda: used_mib(first) == 700, what="memory taken")
        await program.stop()
        eventually_sync(lambda: used_mib(first) == 0, what="memory back")


async def test_a_slice_has_its_own_memory(
    nvml: FakeGpus, model: Path, start_program: Start
) -> None:
    first = nvml.uuids[0]
    small, _ = nvml.partition(first, 4096, 8192)
    with gpu_memory(nvml, fixed_mib={"*": 700}):
        start_program(sleeper(model), {"CUDA_VISIBLE_DEVICES": small})
        eventually_sync(lambda: used_mib(small) == 700, what="memory taken")
