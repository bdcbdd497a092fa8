"""How much memory a llama-server takes for a model, told from headers and arguments; pure.

Weights and caches follow from the header exactly; computing is estimated. docs/memory.md says how
far that is from llama-server's own figures.
"""

from dataclasses import dataclass, replace
from typing import Final

from rolemesh.llama.gguf import GgufHeader
from rolemesh.llama.hyperparameters import Hyperparameters, read_hyperparameters
from rolemesh.llama.memory_context import ContextSizes
from rolemesh.llama.memory_options import MemoryOptions
from rolemesh.llama.memory_weights import WeightPlaces

MIB: Final = 1 << 20
MAX_DEVICES: Final = 16

BACKEND: Final = 512 * MIB
"""What CUDA takes on a GPU before and beside any of llama-server's buffers: its context, kernels,
workspaces. 451 to 456 MiB on RTX 4090 (github.com/ggml-org/llama.cpp/pull/15860)."""

PROJECTOR_COMPUTE: Final = 256 * MIB
"""What an image of usual size takes beside the projector's weights; not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Bytes that one llama-server takes.

    `weights` and `kv` are on the GPUs, all together (in RAM for an instance without a GPU);
    `compute` is on each GPU it runs over, `backend` too (an instance without a GPU has none), and
    `overlap` where there are several. `shares` is how much of `weights` and `kv` the fullest of 2, 3,
    ... GPUs has: whole layers are distributed; without, it is distributed evenly. `host` stays in
    RAM beside a GPU. `alone` is everything for an instance without a GPU; 0: the sum of the others.
    `kv_per_token` is what each further token of context takes of `kv` (or in RAM).
    """

    weights: int
    kv: int = 0
    compute: int = 0
    host: int = 0
    backend: int = 0
    overlap: int = 0
    shares: tuple[int, ...] = ()
    alone: int = 0
    kv_per_token: int = 0

    @property
    def total(self) -> int:
        """Everything, for an instance without a GPU."""
        return self.alone or self.weights + self.kv + self.compute + self.host

    def on_each(self, devices: int) -> int:
        """Return the bytes on each of `devices` GPUs."""
        split, each = self.weights + self.kv, self.compute + self.backend
        if devices <= 1:
            return split + each
        shares = self.shares[devices - 2 : devices - 1] or (-(-split // devices),)
        return shares[0] + each + self.overlap


def estimate_memory(
    header: GgufHeader,
    options: MemoryOptions,
    *,
    draft: GgufHeader | None = None,
    mmproj: GgufHeader | None = None,
    adapter_bytes: int = 0,
) -> MemoryNeed | None:
    """Return what a model takes with these options; None where it cannot be told.

    `adapter_bytes` is the size of all LoRA adapters; the draft model and the projector for images
    and sound are those that the options name.
    """
    shape = read_hyperparameters(header)
    if shape is None:
        return None
    need = _of_one(header, shape, options)
    if draft is not None:
        drafting = estimate_memory(draft, options.for_draft)
        if drafting is None:
            return None
        need = _together(need, drafting)
    if mmproj is not None:
        need = _with_projector(need, mmproj, options)
    return _together(need, MemoryNeed(weights=adapter_bytes))


def _of_one(header: GgufHeader, shape: Hyperparameters, options: MemoryOptions) -> MemoryNeed:
    weights = WeightPlaces(header, shape, options)
    context = ContextSizes(shape, options, options.context or header.context_length or 0)
    units, caches = list(weights.units), context.caches
    kept = sum(caches) + context.drafting
    if units and not options.cache_in_ram:
        for place, size in enumerate(caches[weights.first :]):
            units[place] += size
        units[-1] += context.drafting
    on_gpu = sum(units) - weights.on_gpu
    # Of layers in RAM a GPU still computes large batches, and is lent each weight for it.
    lent = weights.largest_in_ram
    host = weights.in_ram + kept - on_gpu + context.passing + context.output
    return MemoryNeed(
        weights=weights.on_gpu,
        kv=on_gpu,
        compute=context.computing + lent,
        host=host + (context.computing if lent else 0),
        backend=BACKEND,
        overlap=context.overlap,
        shares=_shares(units),
        alone=weights.all + kept + context.computing_alone + context.output,
        kv_per_token=context.per_token,
    )


def _together(one: MemoryNeed, other: MemoryNeed) -> MemoryNeed:
    """Return what two models in one process take."""
    return MemoryNeed(
        weights=one.weights + other.weights,
        kv=one.kv + other.kv,
        compute=one.compute + other.compute,
        host=one.host + other.host,
        backend=max(one.backend, other.backend),
        overlap=one.overlap + other.overlap,
        shares=tuple(map(sum, zip(_shares_of(one), _shares_of(other), strict=True))),
        alone=one.total + other.total,
        kv_per_token=one.kv_per_token + other.kv_per_token,
    )


def _with_projector(need: MemoryNeed, mmproj: GgufHeader, options: MemoryOptions) -> MemoryNeed:
    """Add what looks at images or listens, whole on one GPU; which one is not known."""
    size = mmproj.file_bytes + PROJECTOR_COMPUTE
    need = replace(need, alone=need.alone + size)
    if options.mmproj_in_ram:
        return replace(need, host=need.host + size)
    return replace(need, compute=need.compute + size)


def _shares_of(need: MemoryNeed) -> tuple[int, ...]:
    return need.shares or _evenly(need.weights + need.kv)


def _evenly(size: int) -> tuple[int, ...]:
    return tuple(-(-size // devices) for devices in range(2, MAX_DEVICES + 1))


def _shares(units: list[int]) -> tuple[int, ...]:
    """Return what the fullest of 2, 3, ... GPUs has; () where nothing is on GPUs."""
    return tuple(_fullest(units, devices) for devices in range(2, MAX_DEVICES + 1) if units)


def _fullest(units: list[int], devices: int) -> int:
    """Return what the fullest of so many devices gets of pieces distributed in order."""
    sizes = [0] * devices
    for place, size in enumerate(units):
        sizes[place * devices // len(units)] += size
    return max(sizes)
