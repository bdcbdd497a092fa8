"""NVML as the real binding reads it, from a library that is not real."""

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pynvml
import pytest

from rolemesh.agent.inventory import GpuProcess
from rolemesh.agent.nvml import Nvml
from tests.lab.nvml import FINE, NEVER, REMAP_FAILED, RESET_REQUIRED, UNKNOWN, FakeGpus
from tests.lab.poll import eventually

READ_ONCE = """
import asyncio
from rolemesh.agent.nvml import Nvml
sample = asyncio.run(Nvml().read())
print(len(sample.readings), "|".join(sample.problems))
"""


# Neither the event loop's end nor the process's may wait for a driver that hangs.
READ_IN_VAIN = """
import asyncio
from rolemesh.agent.nvml import Nvml
async def main():
    nvml = Nvml(deadline_s=0.1)
    print((await nvml.read()).problems)
    await nvml.close()
asyncio.run(main())
"""

# As of a binding from before MIG, in which texts are bytes.
OLD_BINDING = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("new_pynvml", {new!r})
new = sys.modules["new_pynvml"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(new)
newer = ("Mig", "RunningProcesses_v", "RemappedRows")
globals().update({{k: v for k, v in vars(new).items() if not any(each in k for each in newer)}})
nvmlDeviceGetUUID = lambda handle: new.nvmlDeviceGetUUID(handle).encode()
"""

SHOW_ONE = """
import asyncio
from rolemesh.agent.nvml import Nvml
sample = asyncio.run(Nvml().read())
print(*sample.problems, *((each.uuid, each.memory_total_mib) for each in sample.readings))
"""


def read_in_a_new_process(environment: Mapping[str, str], program: str = READ_ONCE) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
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
    assert f"card 0 ({lost}) cannot be read: the driver has lost the card" in sample.problems[0]
    assert "dmesg" in sample.gone[lost]
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


async def test_a_card_that_was_never_read_is_lost_without_a_name(fake_gpus: FakeGpus) -> None:
    fake_gpus.lose(fake_gpus.add())
    nvml = Nvml()
    sample = await nvml.read()
    await nvml.close()
    assert sample.problems[0].startswith("NVIDIA card 0 cannot be read")
    assert sample.gone == {}


@pytest.mark.parametrize(
    ("error", "says"), [(RESET_REQUIRED, "needs a reset"), (UNKNOWN, "Unknown Error")]
)
async def test_what_else_the_driver_says_of_a_card_that_is_gone(
    fake_gpus: FakeGpus, error: int, says: str
) -> None:
    uuid = fake_gpus.add()
    nvml = Nvml()
    await nvml.read()
    fake_gpus.fail(uuid, error)
    assert says in (await nvml.read()).gone[uuid]
    await nvml.close()


async def test_a_card_that_may_answer_later_is_not_called_lost(fake_gpus: FakeGpus) -> None:
    uuid, timeout = fake_gpus.add(), 10
    nvml = Nvml()
    await nvml.read()
    fake_gpus.fail(uuid, timeout)
    sample = await nvml.read()
    await nvml.close()
    assert (sample.readings, sample.gone) == ((), {})
    assert f"({uuid}) cannot be read: NVML: " in sample.problems[0]


async def test_cards_come_and_go(fake_gpus: FakeGpus) -> None:
    first = fake_gpus.add()
    nvml = Nvml()
    assert [each.uuid for each in (await nvml.read()).readings] == [first]
    second = fake_gpus.add()
    assert [each.uuid for each in (await nvml.read()).readings] == [first, second]
    fake_gpus.remove(first)
    assert [each.uuid for each in (await nvml.read()).readings] == [second]
    await nvml.close()


async def test_a_card_that_the_driver_finds_later_starts_nvml_anew(
    fake_gpus: FakeGpus, tmp_path: Path
) -> None:
    fake_gpus.add()
    nvml = Nvml(known_to_driver=tmp_path)
    assert (await nvml.read()).problems == ()
    fake_gpus.fail_init()
    assert (await nvml.read()).problems == (), "as long as nothing changes it is not started again"
    (tmp_path / "0000:41:00.0").mkdir()
    assert "not loaded" in (await nvml.read()).problems[0]
    fake_gpus.fail_init(FINE)
    assert len((await nvml.read()).readings) == 1
    await nvml.close()


async def test_nvml_is_started_anew_now_and_then_while_a_card_is_lost(fake_gpus: FakeGpus) -> None:
    lost, _ = fake_gpus.add(), fake_gpus.add()
    nvml = Nvml(reopen_s=0.0)
    await nvml.read()
    fake_gpus.lose(lost)
    assert list((await nvml.read()).gone) == [lost]
    assert list((await nvml.read()).gone) == [lost], "it is known by its place"
    fake_gpus.fail_init()
    assert "not loaded" in (await nvml.read()).problems[0]
    await nvml.close()


async def test_processes_are_read_with_their_memory(fake_gpus: FakeGpus) -> None:
    uuid = fake_gpus.add()
    fake_gpus.run(uuid, 4711, 6000)
    fake_gpus.run(uuid, 815, 300, draws=True)
    fake_gpus.run(uuid, 4711, 6000, draws=True)
    nvml = Nvml()
    (reading,) = (await nvml.read()).readings
    await nvml.close()
    assert reading.processes == (
        GpuProcess(pid=815, memory_mib=300),
        GpuProcess(pid=4711, memory_mib=6000),
    )


async def test_slices_are_read_in_place_of_their_card(fake_gpus: FakeGpus) -> None:
    card, whole = fake_gpus.add("NVIDIA H200", total_mib=143771), fake_gpus.add()
    slices = fake_gpus.partition(card, 18432, 36864)
    fake_gpus.run(slices[1], 4711, 6000)
    fake_gpus.set_load(card, utilisation=50, temperature=64)
    nvml = Nvml()
    sample = await nvml.read()
    await nvml.close()
    assert [each.uuid for each in sample.readings] == [*slices, whole]
    assert sample.partitioned == {card}
    first, second, _ = sample.readings
    assert (first.parent, first.memory_total_mib) == (card, 18432)
    assert second.processes == (GpuProcess(pid=4711, memory_mib=6000),)
    assert second.memory_used_mib is not None
    assert second.memory_used_mib >= 6000
    assert (second.utilisation, second.temperature_c) == (None, 64)
    assert sample.problems == ()


async def test_a_lost_card_takes_its_slices_along(fake_gpus: FakeGpus) -> None:
    card = fake_gpus.add()
    fake_gpus.partition(card, 8192)
    nvml = Nvml()
    assert len((await nvml.read()).readings) == 1
    fake_gpus.lose(card)
    sample = await nvml.read()
    await nvml.close()
    assert (sample.readings, list(sample.gone)) == ((), [card])


async def test_errors_in_its_memory_stand_in_a_cards_health(fake_gpus: FakeGpus) -> None:
    fake_gpus.set_health(fake_gpus.add(), ecc=3, remap=REMAP_FAILED)
    fine = fake_gpus.add()
    fake_gpus.set_health(fine)
    nvml = Nvml()
    first, second = (await nvml.read()).readings
    await nvml.close()
    assert first.health == (
        "3 uncorrected memory errors since the driver was loaded",
        "a row of its memory could not be remapped: the card should be replaced",
    )
    assert second.health == ()


async def test_the_last_xid_of_a_card_stands_in_its_health(fake_gpus: FakeGpus) -> None:
    first, second = fake_gpus.add(), fake_gpus.add()
    fake_gpus.report_xid(first, 13)
    nvml = Nvml()
    assert [each.health for each in (await nvml.read()).readings] == [(), ()], "long ago"
    fake_gpus.report_xid(second, 63)
    fake_gpus.report_xid(second, 79)
    fine, ill = (await nvml.read()).readings
    assert fine.health == ()
    assert re.fullmatch(r"Xid 79 at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", ill.health[0])
    assert (await nvml.read()).readings[1] == ill
    fake_gpus.lose(second)
    assert (await nvml.read()).gone[second].startswith(f"{ill.health[0]}: the driver has lost")
    await nvml.close()


async def test_a_driver_older_than_the_binding_is_asked_in_its_own_way(fake_gpus: FakeGpus) -> None:
    uuid = fake_gpus.add()
    fake_gpus.run(uuid, 4711, 6000)
    fake_gpus.lack(
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetGraphicsRunningProcesses_v3",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetRemappedRows",
    )
    nvml = Nvml()
    sample = await nvml.read()
    await nvml.close()
    assert sample.problems == ()
    assert sample.readings[0].processes == (GpuProcess(pid=4711, memory_mib=6000),)


def test_a_binding_older_than_the_driver_does(fake_gpus: FakeGpus, tmp_path: Path) -> None:
    uuid = fake_gpus.add()
    (tmp_path / "pynvml.py").write_text(OLD_BINDING.format(new=pynvml.__file__))
    path = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[2])))
    assert read_in_a_new_process({"PYTHONPATH": path}, SHOW_ONE) == f"('{uuid}', 24576)"


async def test_a_driver_that_hangs_is_waited_for_once(fake_gpus: FakeGpus) -> None:
    first, second = fake_gpus.add(), fake_gpus.add()
    nvml = Nvml(deadline_s=0.2)
    before = await nvml.read()
    fake_gpus.hang(second)
    late = await nvml.read()
    assert late.readings == before.readings
    assert not late.answered
    assert late.problems[0].startswith("NVML has not answered since ")
    assert f"(asked for card 1 {second})" in late.problems[0]
    samples = await asyncio.gather(*(nvml.read() for _ in range(50)))
    assert all(sample == late for sample in samples), "the words change only when something does"
    assert sum(thread.name == "nvml" for thread in threading.enumerate()) == 1

    fake_gpus.recover(second)

    async def answers() -> bool:
        return (await nvml.read()).answered

    await eventually(answers, what="NVML answers again")
    assert [each.uuid for each in (await nvml.read()).readings] == [first, second]
    await nvml.close()


def test_an_agent_may_end_while_the_driver_hangs(fake_gpus: FakeGpus) -> None:
    fake_gpus.fail_init(NEVER)
    said = read_in_a_new_process({}, READ_IN_VAIN)
    assert "NVML has not answered since" in said
    assert "(asked for a start of NVML)" in said
