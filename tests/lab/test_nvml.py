import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

from tests.lab.nvml import FINE, FakeGpus
from tests.lab.poll import eventually_sync
from tests.lab.processes import Program

MIB = 1 << 20
RESERVED_MIB = 300
OVERHEAD_MIB = 200


@pytest.fixture
def nvml(fake_gpus: FakeGpus) -> Iterator[FakeGpus]:
    """Two GPUs, and the real binding initialised."""
    fake_gpus.add(total_mib=24576)
    fake_gpus.add("NVIDIA H200", total_mib=143771)
    pynvml.nvmlInit()
    yield fake_gpus
    fake_gpus.fail_init(FINE)
    pynvml.nvmlShutdown()


def uuids() -> list[str]:
    handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
    return [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]


def free_mib(handle: object) -> int:
    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) // MIB


def test_the_real_binding_reads_the_fake_gpus(nvml: FakeGpus) -> None:
    handle = pynvml.nvmlDeviceGetHandleByIndex(1)
    assert pynvml.nvmlDeviceGetName(handle) == "NVIDIA H200"
    assert pynvml.nvmlDeviceGetUUID(handle) == uuids()[1]
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    assert memory.total == 143771 * MIB
    assert memory.used + memory.free == memory.total
    assert pynvml.nvmlSystemGetDriverVersion()


def test_both_forms_of_the_memory_call_agree_on_what_is_free(nvml: FakeGpus) -> None:
    nvml.use(uuids()[0], used_mib=1000)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    second = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    assert free_mib(handle) == second.free // MIB == 24576 - RESERVED_MIB - 1000
    assert second.used // MIB == 1000
    assert second.reserved // MIB == RESERVED_MIB


def test_utilisation_temperature_and_power_follow_the_load(nvml: FakeGpus) -> None:
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    nvml.set_load(uuids()[0], utilisation=93, temperature=71)
    assert pynvml.nvmlDeviceGetUtilizationRates(handle).gpu == 93
    assert pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU) == 71
    assert pynvml.nvmlDeviceGetPowerUsage(handle) > 20000


def test_gpus_may_be_found_by_uuid(nvml: FakeGpus) -> None:
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuids()[1])
    assert pynvml.nvmlDeviceGetIndex(handle) == 1
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetHandleByUUID("GPU-nowhere")


def test_a_lost_gpu_is_still_counted_but_answers_nothing(nvml: FakeGpus) -> None:
    lost, healthy = uuids()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    nvml.lose(lost)
    assert pynvml.nvmlDeviceGetCount() == 2
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetMemoryInfo(handle)
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetHandleByIndex(0)
    assert free_mib(pynvml.nvmlDeviceGetHandleByUUID(healthy))
    nvml.recover(lost)
    assert uuids() == [lost, healthy]


def test_a_removed_gpu_moves_the_others_but_not_the_handles(nvml: FakeGpus) -> None:
    first, second = uuids()
    first_handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    second_handle = pynvml.nvmlDeviceGetHandleByIndex(1)
    nvml.remove(first)
    assert uuids() == [second]
    assert pynvml.nvmlDeviceGetUUID(second_handle) == second
    assert pynvml.nvmlDeviceGetIndex(second_handle) == 0
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetUUID(first_handle)


def test_an_added_gpu_is_seen_at_once(nvml: FakeGpus) -> None:
    added = nvml.add("NVIDIA A2", total_mib=15356)
    assert uuids()[2] == added


def test_a_driver_that_is_not_loaded_refuses_init(fake_gpus: FakeGpus) -> None:
    fake_gpus.fail_init()
    with pytest.raises(pynvml.NVMLError_DriverNotLoaded):
        pynvml.nvmlInit()
    fake_gpus.fail_init(FINE)
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 0
    pynvml.nvmlShutdown()


def test_questions_before_init_are_refused(fake_gpus: FakeGpus) -> None:
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()


@pytest.mark.parametrize(
    ("question", "error"),
    [
        (pynvml.nvmlDeviceGetMigMode, pynvml.NVMLError_NotSupported),
        (pynvml.nvmlDeviceGetSerial, pynvml.NVMLError_FunctionNotFound),
    ],
)
def test_what_a_gpu_cannot_say_is_an_error(
    nvml: FakeGpus, question: Callable[[object], object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        question(pynvml.nvmlDeviceGetHandleByIndex(0))


def sleeper(model: Path) -> list[str | Path]:
    """Return a process that looks like a llama-server to the fake GPUs, and only sleeps."""
    return [sys.executable, "-c", "import time; time.sleep(60)", "-m", model]


async def test_a_process_takes_memory_from_its_gpu_until_it_ends(
    nvml: FakeGpus, tmp_path: Path, start_program: Callable[..., Program]
) -> None:
    model = tmp_path / "weights.gguf"
    model.write_bytes(b"\0" * 10 * MIB)
    uuid, other_uuid = uuids()
    handle, other = map(pynvml.nvmlDeviceGetHandleByUUID, (uuid, other_uuid))
    free_before, other_free = free_mib(handle), free_mib(other)

    program = start_program(sleeper(model), {"CUDA_VISIBLE_DEVICES": uuid})
    eventually_sync(lambda: free_mib(handle) < free_before, what="memory taken")
    assert free_mib(handle) == free_before - 10 - OVERHEAD_MIB
    assert free_mib(other) == other_free
    (process,) = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    assert process.pid == program.pid
    assert process.usedGpuMemory == (10 + OVERHEAD_MIB) * MIB

    await program.stop()
    assert free_mib(handle) == free_before
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(handle) == []


async def test_a_real_llama_server_that_is_killed_gives_its_memory_back(
    nvml: FakeGpus,
    llama_server: Path,
    make_model: Callable[..., Path],
    short_path: Path,
    start_program: Callable[..., Program],
) -> None:
    uuid = uuids()[0]
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    free_before = free_mib(handle)
    command = [llama_server, "-m", make_model(), "--host", short_path / "s.sock", "--port", "1"]
    program = start_program(command, {"CUDA_VISIBLE_DEVICES": uuid})
    await program.line("listening|loading model")
    assert [each.pid for each in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)] == [
        program.pid
    ]
    assert free_mib(handle) < free_before
    program.send(signal.SIGKILL)
    await program.end()
    assert free_mib(handle) == free_before


async def test_a_model_over_two_gpus_takes_half_of_its_size_from_each(
    nvml: FakeGpus, tmp_path: Path, start_program: Callable[..., Program]
) -> None:
    model = tmp_path / "weights.gguf"
    model.write_bytes(b"\0" * 10 * MIB)
    handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids()]
    free_before = [free_mib(handle) for handle in handles]
    start_program(sleeper(model), {"CUDA_VISIBLE_DEVICES": ",".join(uuids())})
    expected = [free - 5 - OVERHEAD_MIB for free in free_before]
    eventually_sync(
        lambda: [free_mib(handle) for handle in handles] == expected, what="memory taken"
    )


def test_other_programs_see_the_same_gpus_by_their_environment(nvml: FakeGpus) -> None:
    question = "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetCount())"
    done = subprocess.run(
        [sys.executable, "-c", question], check=True, capture_output=True, text=True
    )
    assert done.stdout == "2\n"
