"""Which of a llama-server's arguments decide how much memory it takes; pure.

Names and defaults as in llama.cpp's common/arg.cpp and common/common.h; of equal options the last
one counts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rolemesh.llama.gguf_types import CACHE_TYPES, TensorType
from rolemesh.llama.server_options import plain_name

DEFAULT_BATCH: Final = 2048
DEFAULT_UBATCH: Final = 512
DEFAULT_DRAFTED_TOKENS: Final = 3
_AUTO_SLOTS: Final = 4  # of `-np -1`
_EVERY: Final = 1 << 20  # more layers than any model has
_F16: Final = CACHE_TYPES["f16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOptions:
    """What was asked for.

    `context` is that of all slots together, in tokens, None: what the model was trained for; of a
    `unified` cache each slot may use all. `gpu_layers` None: all. `experts_in_ram` is of how many
    layers the experts stay in RAM. `overrides` are (pattern of tensor names, buffer type).
    `pooling` None: what the model says. `older_build`: one of llama.cpp until June 2026,
    which reserves more (docs/memory.md).
    """

    context: int | None = None
    parallel: int = 1
    unified: bool = False
    batch: int = DEFAULT_BATCH
    ubatch: int = DEFAULT_UBATCH
    flash_attention: bool = True
    cache_k: TensorType = _F16
    cache_v: TensorType = _F16
    cache_in_ram: bool = False
    full_window: bool = False
    gpu_layers: int | None = None
    experts_in_ram: int = 0
    overrides: tuple[tuple[str, str], ...] = ()
    embeddings: bool = False
    pooling: str | None = None
    adapters: tuple[Path, ...] = ()
    mmproj: Path | None = None
    mmproj_in_ram: bool = False
    draft: Path | None = None
    draft_gpu_layers: int | None = None
    draft_cache_k: TensorType = _F16
    draft_cache_v: TensorType = _F16
    uses_own_drafts: bool = False
    drafted_tokens: int = DEFAULT_DRAFTED_TOKENS
    older_build: bool = False

    @property
    def for_draft(self) -> "MemoryOptions":
        """The options of the draft model beside it: the same context and slots."""
        return MemoryOptions(
            context=self.context,
            parallel=self.parallel,
            unified=self.unified,
            batch=self.batch,
            ubatch=self.ubatch,
            flash_attention=self.flash_attention,
            cache_k=self.draft_cache_k,
            cache_v=self.draft_cache_v,
            gpu_layers=self.draft_gpu_layers,
            older_build=self.older_build,
        )


def read_options(args: Sequence[str]) -> MemoryOptions:
    """Return what a command line asks for; what cannot be understood counts as not given."""
    found = MemoryOptions()
    rest = list(reversed(args))
    while rest:
        name = plain_name(rest.pop())
        if name in _FLAGS:
            found = replace(found, **_FLAGS[name])
        elif name in _FLASH_ATTENTION:
            # Until 2025 it had no value.
            value = rest.pop() if rest and rest[-1] in _SWITCH else "on"
            found = replace(found, flash_attention=_SWITCH[value])
        elif name in _VALUES and rest:
            try:
                change = _VALUES[name](rest.pop())
            except (ValueError, KeyError):
                continue
            # These may be given several times, and all count.
            for key in change.keys() & {"adapters", "overrides"}:
                change[key] = getattr(found, key) + change[key]
            found = replace(found, **change)
    return found


_Change = dict[str, Any]

_FLASH_ATTENTION: Final = frozenset({"-fa", "--flash-attn"})
_SWITCH: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("on", "auto", "enabled", "true", "1", "-1"), True),
    **dict.fromkeys(("off", "disabled", "false", "0"), False),
}

_FLAGS: Final[Mapping[str, _Change]] = {
    **{key: {"unified": True} for key in ("-kvu", "--kv-unified")},
    **{key: {"unified": False} for key in ("-no-kvu", "--no-kv-unified")},
    **{key: {"cache_in_ram": True} for key in ("-nkvo", "--no-kv-offload")},
    **{key: {"cache_in_ram": False} for key in ("-kvo", "--kv-offload")},
    "--swa-full": {"full_window": True},
    **{key: {"experts_in_ram": _EVERY} for key in ("-cmoe", "--cpu-moe")},
    **{key: {"embeddings": True} for key in ("--embedding", "--embeddings")},
    **{key: {"embeddings": True, "pooling": "rank"} for key in ("--rerank", "--reranking")},
    "--no-mmproj-offload": {"mmproj_in_ram": True},
    "--mmproj-offload": {"mmproj_in_ram": False},
}


def _context(value: str) -> _Change:
    return {"context": int(value) if int(value) > 0 else None}


def _parallel(value: str) -> _Change:
    count = int(value)
    return {"parallel": count} if count > 0 else {"parallel": _AUTO_SLOTS, "unified": True}


def _number(key: str) -> Callable[[str], _Change]:
    return lambda value: {key: max(1, int(value))}


def _layers(key: str) -> Callable[[str], _Change]:
    def read(value: str) -> _Change:
        layers = None if value in {"auto", "all"} else int(value)
        return {key: None if layers is None or layers < 0 else layers}

    return read


def _cache(key: str) -> Callable[[str], _Change]:
    return lambda value: {key: CACHE_TYPES[value]}


def _path(key: str) -> Callable[[str], _Change]:
    return lambda value: {key: Path(value)}


def _adapters(value: str) -> _Change:
    """Paths with a comma or a colon cannot be told apart; such are not counted."""
    return {"adapters": tuple(Path(each.partition(":")[0]) for each in value.split(","))}


def _overrides(value: str) -> _Change:
    pairs = (each.rpartition("=") for each in value.split(","))
    return {"overrides": tuple((pattern, buffer) for pattern, _, buffer in pairs if pattern)}


_VALUES: Final[Mapping[str, Callable[[str], _Change]]] = {
    **dict.fromkeys(("-c", "--ctx-size"), _context),
    **dict.fromkeys(("-np", "--parallel"), _parallel),
    **dict.fromkeys(("-b", "--batch-size"), _number("batch")),
    **dict.fromkeys(("-ub", "--ubatch-size"), _number("ubatch")),
    **dict.fromkeys(("-ctk", "--cache-type-k"), _cache("cache_k")),
    **dict.fromkeys(("-ctv", "--cache-type-v"), _cache("cache_v")),
    **dict.fromkeys(("-ngl", "--gpu-layers", "--n-gpu-layers"), _layers("gpu_layers")),
    **dict.fromkeys(("-ncmoe", "--n-cpu-moe"), _number("experts_in_ram")),
    **dict.fromkeys(("-ot", "--override-tensor"), _overrides),
    "--pooling": lambda value: {"pooling": value},
    **dict.fromkeys(("--lora", "--lora-scaled"), _adapters),
    **dict.fromkeys(("-mm", "--mmproj"), _path("mmproj")),
    **dict.fromkeys(("-md", "--model-draft", "--spec-draft-model"), _path("draft")),
    **dict.fromkeys(
        ("-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft", "--spec-draft-ngl"),
        _layers("draft_gpu_layers"),
    ),
    **dict.fromkeys(
        ("-ctkd", "--cache-type-k-draft", "--spec-draft-type-k"), _cache("draft_cache_k")
    ),
    **dict.fromkeys(
        ("-ctvd", "--cache-type-v-draft", "--spec-draft-type-v"), _cache("draft_cache_v")
    ),
    **dict.fromkeys(
        ("--spec-draft-n-max", "--draft-max", "--draft-n", "--draft"), _number("drafted_tokens")
    ),
    "--spec-type": lambda value: {"uses_own_drafts": "mtp" in value},
}
