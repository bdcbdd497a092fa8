"""The GPUs of an agent, all steps together."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rolemesh.agent.gpu_claims import GpuClaims
from rolemesh.agent.gpu_numbers import GpuNumbersFile
from rolemesh.agent.gpu_watch import GpuWatch
from rolemesh.agent.inventory import Inventory
from rolemesh.agent.nvml import Nvml
from rolemesh.agent.other_devices import OtherDevices
from rolemesh.config.settings import LlamaServer, NodeSettings
from rolemesh.errors import NodeError
from rolemesh.names import NodeId
from tests.agent.builders import node_settings
from tests.lab.nvml import FakeGpus

MakeWatch = Callable[[str], GpuWatch]


@pytest.fixture
async def watch_of(tmp_path: Path) -> Any:
    """Return a function that makes the watch of an agent of this host."""
    made: list[GpuWatch] = []

    def make(node_id: str) -> GpuWatch:
        watch = GpuWatch(
            nvml=Nvml(),
            devices=OtherDevices(),
            numbers=GpuNumbersFile(tmp_path),
            claims=GpuClaims(tmp_path / "owners", node_id=NodeId(node_id)),
            shares_units=True,
        )
        made.append(watch)
        return watch

    yield make
    for watch in made:
        await watch.aclose()


def settings(**others: Any) -> NodeSettings:
    return node_settings("m", **others)


def names(inventory: Inventory) -> list[str]:
    return [gpu.name for gpu in inventory.gpus]


async def test_an_agent_alone_has_all_gpus(fake_gpus: FakeGpus, watch_of: MakeWatch) -> None:
    lost, _ = fake_gpus.add(), fake_gpus.add()
    watch = watch_of("box")
    assert names(await watch.look(settings())) == ["gpu0", "gpu1"]
    fake_gpus.lose(lost)
    inventory = await watch.look(settings())
    assert (names(inventory), list(inventory.gone)) == (["gpu1"], [0])
    assert "has lost the card" in inventory.why_missing("gpu0")


async def test_each_gpu_has_one_owner(fake_gpus: FakeGpus, watch_of: MakeWatch) -> None:
    fake_gpus.add()
    fake_gpus.add()
    first, second = watch_of("first"), watch_of("second")
    assert names(await first.look(settings(gpus=(0,)))) == ["gpu0"]
    inventory = await second.look(settings())
    assert names(inventory) == ["gpu1"]
    assert "gpu0 is used by the agent of node first (pid " in inventory.why_missing("gpu0")
    assert "not among the GPUs" in (await first.look(settings(gpus=(0,)))).why_missing("gpu1")
    await first.look(settings(gpus=()))
    assert names(await second.look(settings())) == ["gpu0", "gpu1"]


async def test_a_gpu_is_not_let_go_of_while_something_still_runs_there(
    fake_gpus: FakeGpus, watch_of: MakeWatch
) -> None:
    uuid = fake_gpus.add()
    first, second = watch_of("first"), watch_of("second")
    await first.look(settings())
    first.in_use = lambda: frozenset({uuid})
    assert names(await first.look(settings(gpus=()))) == []
    assert names(await second.look(settings())) == []
    first.in_use = frozenset
    await first.look(settings(gpus=()))
    assert names(await second.look(settings())) == ["gpu0"]


async def test_an_instance_without_a_gpu_has_one_owner(
    fake_gpus: FakeGpus, watch_of: MakeWatch
) -> None:
    on_cpu = settings(instances={"cpu0": "m", "cpu1": "m"})
    first, second = watch_of("first"), watch_of("second")
    assert (await first.look(settings())).taken == {}
    inventory = await second.look(on_cpu)
    assert inventory.taken.keys() == {"cpu0"}
    assert inventory.why_missing("cpu0").startswith("cpu0 is used by the agent of node first")
    fake_gpus.add()
    await first.look(settings())
    inventory = await second.look(on_cpu)
    assert inventory.taken == {}, "the first has a GPU now"
    assert names(inventory) == ["gpu0"], "who uses no GPU claims none, and sees all"


async def test_what_an_agent_has_it_never_lets_go_of_between_two_looks(
    fake_gpus: FakeGpus, watch_of: MakeWatch, tmp_path: Path
) -> None:
    watch = watch_of("box")
    await watch.look(settings())
    with (tmp_path / "owners" / "cpu0.lock").open() as lock:
        await watch.look(settings())
        await watch.renumber(settings())
        # A lock that is let go of is unlinked, and a new one made with the next.
        assert os.fstat(lock.fileno()).st_nlink == 1
        fake_gpus.add()
        await watch.look(settings())
        assert os.fstat(lock.fileno()).st_nlink == 0, "it has a GPU now"


async def test_an_agent_whose_gpus_others_have_runs_on_the_cpu(
    fake_gpus: FakeGpus, watch_of: MakeWatch, tmp_path: Path
) -> None:
    fake_gpus.add()
    first, second = watch_of("first"), watch_of("second")
    await first.look(settings())
    assert names(await second.look(settings())) == []
    assert sorted(path.name for path in (tmp_path / "owners").glob("cpu*")) == ["cpu0.lock"]
    await first.look(settings(gpus=()))
    assert names(await second.look(settings())) == ["gpu0"]
    assert (await first.look(settings(gpus=()))).taken == {}, "cpu0 is free again"


async def test_llama_servers_devices_stand_in_for_gpus(
    fake_gpus: FakeGpus, watch_of: MakeWatch, tmp_path: Path
) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho '  Vulkan0: a card (8192 MiB, 8000 MiB free)'\n")
    program.chmod(0o755)
    watch, server = watch_of("box"), LlamaServer(path=program)
    inventory = await watch.look(settings(llama_server=server))
    assert [(gpu.name, gpu.reading.uuid) for gpu in inventory.gpus] == [("gpu0", "Vulkan0")]
    on_cpu = settings(llama_server=server, instances={"cpu0": "m"})
    assert names(await watch.look(on_cpu)) == [], "nobody wants them"
    uuid = fake_gpus.add()
    inventory = await watch.look(settings(llama_server=server))
    assert [(gpu.name, gpu.reading.uuid) for gpu in inventory.gpus] == [("gpu1", uuid)]


async def test_a_llama_server_that_cannot_name_its_devices_is_a_problem(
    fake_gpus: FakeGpus, watch_of: MakeWatch, tmp_path: Path
) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho 'Failed to connect' >&2; exit 134\n")
    program.chmod(0o755)
    inventory = await watch_of("box").look(settings(llama_server=LlamaServer(path=program)))
    assert inventory.problems == (f"{program} --list-devices: Failed to connect",)
    del fake_gpus


async def test_gpus_are_numbered_anew_unless_others_use_them(
    fake_gpus: FakeGpus, watch_of: MakeWatch
) -> None:
    first, second = fake_gpus.add(), fake_gpus.add()
    watch, other = watch_of("box"), watch_of("other")
    await watch.look(settings(gpus=()))
    await other.look(settings(gpus=(1,)))
    fake_gpus.remove(first)
    with pytest.raises(NodeError, match=r"gpu1 would become gpu0, but is used by .* other"):
        await watch.renumber(settings(gpus=()))
    inventory = await other.renumber(settings())
    assert [(gpu.name, gpu.reading.uuid) for gpu in inventory.gpus] == [("gpu0", second)]
    assert inventory.lost == {}


async def test_gpus_that_nobody_else_could_be_told_of_are_used(
    fake_gpus: FakeGpus, watch_of: MakeWatch, tmp_path: Path
) -> None:
    fake_gpus.add()
    (tmp_path / "owners").touch()
    inventory = await watch_of("box").look(settings())
    assert names(inventory) == ["gpu0"]
    assert "cannot claim GPUs" in inventory.problems[0]
