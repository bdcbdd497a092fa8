"""What a model needs and what there is, in the words of people; pure.

Files may come from anywhere: nothing in the texts would be obeyed by a terminal.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

from rolemesh.ctl.output import clean, memory
from rolemesh.llama.gguf import GgufHeader
from rolemesh.llama.hyperparameters import read_hyperparameters
from rolemesh.llama.memory import estimate_memory
from rolemesh.llama.memory_options import MemoryOptions

Use = Literal["embeddings", "rerank"]
"""The key of a model that llama-server must be told of before it does anything else than text."""

_RANK: Final = 4
"""LLAMA_POOLING_TYPE_RANK of llama.h."""


def header_text(header: GgufHeader) -> str:
    """Return what a file says of itself, on one line."""
    return clean(", ".join(_header_facts(header)))


def _header_facts(header: GgufHeader) -> Iterator[str]:
    yield header.architecture or "of an unknown architecture"
    yield f"{_count(header.parameter_count)} parameters"
    if header.quantisation:
        yield header.quantisation
    if header.block_count:
        yield f"{header.block_count} layers"
    if header.context_length:
        yield f"trained for {header.context_length} tokens"
    yield f"{_size(header.file_bytes)} of weights"


def use_of(header: GgufHeader) -> Use | None:
    """Return what a model is for that was not made to write text; None: it was."""
    pooling = header.number("pooling_type")
    if pooling == _RANK:
        return "rerank"
    shape = read_hyperparameters(header)
    return "embeddings" if pooling or (shape is not None and not shape.speaks) else None


def _size(count: int) -> str:
    return memory(count >> 20) if count >> 20 else f"{count / 1024:.0f} KiB"


def _count(number: int) -> str:
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.1f} {name}"
    return str(number)


def estimate_text(header: GgufHeader, context_size: int | None, parallel: int) -> str:
    """Return what a model needs by its header alone: no instance, and no arguments of its own."""
    context = None if context_size is None else context_size * parallel
    need = estimate_memory(header, MemoryOptions(context=context, parallel=parallel))
    if need is None:
        return "what it needs cannot be told from its header"
    on_gpu, alone = need.on_each(1), need.total
    return f"needs {_size(on_gpu)} on a GPU, {_size(alone)} without one, by its header"


def fit_text(plan: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    """Return what a model needs, what is free, and where it would go: a plan's numbers."""
    need = plan.get("need_mib")
    parts = ["what it needs cannot be told" if need is None else f"needs {memory(need)}"]
    free = list(_free(node.get("gpus", [])))
    if free:
        parts.append(f"{free[0][0]} has {free[0][1]} free")
        parts[-1] = ", ".join((parts[-1], *(f"{name} {room}" for name, room in free[1:])))
    where = plan.get("instance")
    reason = plan.get("problem") or plan.get("reason")
    if plan.get("outcome") == "refused" or plan.get("problem") or where is None:
        parts.append(f"it would run nowhere now: {reason or 'no reason given'}")
    elif plan.get("outcome") == "joins":
        parts.append(f"it is on {where}, or on its way there")
    else:
        parts.append(f"it would run on {where}")
    return clean("; ".join(parts))


def _free(gpus: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for gpu in gpus:
        total, used = gpu.get("memory_total_mib"), gpu.get("memory_used_mib")
        if total is not None and used is not None:
            yield str(gpu.get("gpu")), memory(max(0, total - used))
