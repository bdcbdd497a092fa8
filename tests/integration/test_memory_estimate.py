"""What models take by our estimate, beside what a real llama-server says it takes.

On a GPU: by the memory that it plans for a device, a real RPC one. It plans before it loads, so the
models are as large as those that people run. Without a GPU: by the buffers that it has allocated.

The bounds below are those that docs/memory.md states.
"""

import re
import signal
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from rolemesh.llama.gguf import read_model
from rolemesh.llama.memory import MIB, MemoryNeed, estimate_memory
from rolemesh.llama.memory_options import read_options
from tests.lab.llama_server import NoLlamaServer
from tests.lab.poll import eventually_sync
from tests.lab.processes import Program, free_port
from tests.lab.rpc_devices import RpcPrograms, rpc_programs
from tests.lab.shapes import ModelShape, write_shape

pytestmark = pytest.mark.llama

ROUNDING_MIB = 1  # llama-server prints whole MiB
MOST_PERCENT, MOST_MIB = 1, 16
"""Weights, caches and computing together are estimated at most so much too high."""

LLAMA_8B = ModelShape(
    layers=32,
    embedding=4096,
    heads=32,
    kv_heads=8,
    feed_forward=14336,
    vocabulary=128_256,
    context=131_072,
    weights="Q4_K",
)
GEMMA_4B = ModelShape(
    architecture="gemma3",
    layers=34,
    embedding=2560,
    heads=8,
    kv_heads=4,
    head_size=256,
    feed_forward=10240,
    vocabulary=262_144,
    context=131_072,
    weights="Q8_0",
    window=1024,
    tied=True,
)
QWEN_30B = ModelShape(
    architecture="qwen3moe",
    layers=48,
    embedding=2048,
    heads=32,
    kv_heads=4,
    head_size=128,
    feed_forward=768,
    vocabulary=151_936,
    context=40_960,
    weights="Q4_K",
    experts=128,
    experts_used=8,
)
QWEN_EMBEDDING = ModelShape(
    architecture="qwen3",
    layers=28,
    embedding=1024,
    heads=16,
    kv_heads=8,
    head_size=128,
    feed_forward=3072,
    vocabulary=151_936,
    context=32_768,
    weights="Q8_0",
    tied=True,
)
DEEPSEEK_LITE = ModelShape(
    architecture="deepseek2",
    layers=27,
    embedding=2048,
    heads=16,
    head_size=128,
    feed_forward=1408,
    vocabulary=102_400,
    weights="Q8_0",
    latent=512,
    experts=64,
    experts_used=6,
)
MAMBA = ModelShape(
    architecture="mamba",
    layers=48,
    embedding=1536,
    heads=0,
    feed_forward=0,
    vocabulary=50_280,
    state=16,
)
BERT = ModelShape(
    architecture="bert",
    layers=12,
    embedding=768,
    heads=12,
    kv_heads=12,
    feed_forward=3072,
    vocabulary=30_522,
    context=512,
)
CASES = {
    "dense, grouped heads": (LLAMA_8B, "-c 8192 -np 1"),
    "long context, many slots, 8-bit cache": (
        LLAMA_8B,
        "-c 262144 -np 8 -ctk q8_0 -ctv q8_0",
    ),
    "no flash attention": (LLAMA_8B, "-c 16384 -np 2 -fa off"),
    "large batches": (LLAMA_8B, "-c 32768 -np 1 -b 4096 -ub 2048"),
    "two thirds of the layers": (LLAMA_8B, "-c 8192 -np 1 -ngl 22"),
    "sliding windows, large vocabulary": (GEMMA_4B, "-c 65536 -np 4"),
    "mixture of experts": (QWEN_30B, "-c 32768 -np 1"),
    "experts in RAM": (QWEN_30B, "-c 32768 -np 1 -cmoe"),
    "compressed keys and values": (DEEPSEEK_LITE, "-c 16384 -np 1"),
    "recurrent": (MAMBA, "-c 8192 -np 4"),
    "embeddings, decoder": (QWEN_EMBEDDING, "-c 8192 -np 1 --embeddings --pooling last"),
    "embeddings, encoder": (BERT, "-c 2048 -np 4 --embeddings"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What llama-server plans to take of a device, in MiB."""

    weights: int
    caches: int
    computing: int

    @property
    def total(self) -> int:
        return self.weights + self.caches + self.computing


class Bench:
    """A llama-server with devices, and models of any shape."""

    def __init__(self, start_program: Callable[..., Program], folder: Path) -> None:
        self._start = start_program
        self._folder = folder

    def model(self, shape: ModelShape) -> Path:
        return write_shape(shape, self._folder / "model.gguf")

    def start_devices(self, programs: RpcPrograms, count: int) -> str:
        ports = [free_port() for _ in range(count)]
        for port in ports:
            self._start([programs.rpc_server, "-H", "127.0.0.1", "-p", str(port)])
        eventually_sync(lambda: all(map(_is_listening, ports)), what="the devices are served")
        return ",".join(f"127.0.0.1:{port}" for port in ports)

    async def plan(
        self, programs: RpcPrograms, model: Path, arguments: str, *, devices: int = 1
    ) -> list[Planned]:
        """Return what a llama-server plans for each device; it loads nothing."""
        rpc = self.start_devices(programs, devices)
        even = ("-ts", ",".join("1" * devices)) if devices > 1 else ()
        command = [programs.llama_server, "-m", model, "--port", str(free_port()), "-lv", "4"]
        command += ["--rpc", rpc, "-fit", "on", "-fitt", "0", *even, *arguments.split()]
        server = self._start(command)
        await server.line(r"memory_breakdown_print.*- Host ")
        server.send(signal.SIGKILL)
        await server.end()
        found = [
            Planned(weights=int(each[1]), caches=int(each[2]), computing=int(each[3]))
            for line in server.lines()
            if (each := re.search(r"- RPC.*= +\( *\d+ = +(\d+) \+ +(\d+) \+ +(\d+)\)", line))
            or (each := re.search(r"- RPC.*\( *\d+ = +(\d+) \+ +(\d+) \+ +(\d+)\)", line))
        ]
        return found[:devices]

    async def allocated_mib(self, program: Path, model: Path, arguments: str) -> float:
        """Return what a llama-server without a GPU has allocated in all its buffers."""
        command = [program, "-m", model, "--port", str(free_port()), "-lv", "4", "-fit", "off"]
        command += ["--no-warmup", "--no-repack", "--device", "none", *arguments.split()]
        server = self._start(command)
        await server.line(r"listening on", deadline_s=60)
        sizes = re.findall(r" buffer size = +([\d.]+) MiB", "\n".join(server.lines()))
        return sum(map(float, sizes))


def _is_listening(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def estimate(model: Path, arguments: str) -> MemoryNeed:
    need = estimate_memory(read_model(model), read_options(arguments.split()))
    assert need is not None
    return need


@pytest.fixture(scope="module")
def programs() -> RpcPrograms:
    try:
        return rpc_programs()
    except NoLlamaServer as err:
        pytest.skip(str(err))


@pytest.fixture
def bench(start_program: Callable[..., Program], tmp_path: Path) -> Bench:
    return Bench(start_program, tmp_path)


@pytest.mark.parametrize("case", CASES)
async def test_the_estimate_for_a_gpu(case: str, programs: RpcPrograms, bench: Bench) -> None:
    shape, arguments = CASES[case]
    model = bench.model(shape)
    (planned,) = await bench.plan(programs, model, arguments)
    need = estimate(model, arguments)
    assert abs(need.weights / MIB - planned.weights) <= ROUNDING_MIB
    assert abs(need.kv / MIB - planned.caches) <= ROUNDING_MIB
    assert need.compute / MIB >= planned.computing - ROUNDING_MIB
    if "RAM" in case or "layers" in case:
        return  # RPC devices, unlike GPUs, are lent no weights
    estimated = need.on_each(1) - need.backend
    assert estimated / MIB <= planned.total * (1 + MOST_PERCENT / 100) + MOST_MIB


@pytest.mark.parametrize("case", ["dense, grouped heads", "sliding windows, large vocabulary"])
async def test_the_estimate_for_each_of_two_gpus(
    case: str, programs: RpcPrograms, bench: Bench
) -> None:
    shape, arguments = CASES[case]
    model = bench.model(shape)
    planned = await bench.plan(programs, model, arguments, devices=2)
    need = estimate(model, arguments)
    estimated = need.on_each(2) - need.backend
    most = max(each.total for each in planned)
    assert most - ROUNDING_MIB <= estimated / MIB <= most * (1 + MOST_PERCENT / 100) + 3 * MOST_MIB


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        (ModelShape(embedding=1024, heads=16, kv_heads=4, feed_forward=4096), "-c 8192 -np 2"),
        (ModelShape(vocabulary=150_000, tied=True), "-c 4096 -np 1"),
        (ModelShape(), "-c 65536 -np 4 -ctk q8_0 -ctv q8_0"),
        (ModelShape(), "-c 8192 -np 1 -fa off"),
        (
            ModelShape(architecture="gemma3", layers=12, head_size=256, window=512, tied=True),
            "-c 16384 -np 2",
        ),
        (
            ModelShape(architecture="mamba", heads=0, kv_heads=0, feed_forward=0, state=16),
            "-c 4096 -np 2",
        ),
        (ModelShape(architecture="bert", context=512), "-c 512 -np 1 --embeddings"),
    ],
    ids=["dense", "vocabulary", "8-bit cache", "no flash attention", "windows", "state", "encoder"],
)
async def test_the_estimate_without_a_gpu(
    shape: ModelShape, arguments: str, llama_server: Path, bench: Bench
) -> None:
    model = bench.model(shape)
    allocated = await bench.allocated_mib(llama_server, model, arguments)
    estimated = estimate(model, arguments).total / MIB
    assert allocated * 0.99 <= estimated <= allocated * (1 + MOST_PERCENT / 100) + MOST_MIB
