"""What a model's settings are as options of llama-server; pure.

Each option is known under several names: builds differ, and an operator's argument of any of them
takes its place.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rolemesh.config.settings import DraftModel, Lora, ModelSettings
from rolemesh.llama.server_options import ServerBuild

ALL_LAYERS: Final = "999"
"""More than any model has; only newer builds know "all"."""

FLASH_ATTENTION: Final = ("-fa", "--flash-attn")
LORA: Final = ("--lora",)
LORA_SCALED: Final = ("--lora-scaled",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option that RoleMesh sets.

    `names` are all it ever had, those of newer builds first. `key` is the key of the model's
    settings that asks for it; "": RoleMesh's own, left out where the build does not know it. `last`:
    to be given after the operator's arguments.
    """

    names: tuple[str, ...]
    values: tuple[str, ...] = ()
    key: str = ""
    last: bool = False


def model_options(model: ModelSettings, build: ServerBuild, *, gpus: int) -> tuple[Option, ...]:
    """Return the options that the keys of a model's settings stand for; `gpus` 0: on the CPU."""
    return (
        *_memory_options(model, gpus),
        *_flash_attention(model, build),
        *_plain_options(model),
        *_lora_options(model.lora, build),
        *_draft_options(model.draft_model, gpus),
        *_template_options(model),
        *_task_options(model),
    )


def _memory_options(model: ModelSettings, gpus: int) -> Iterator[Option]:
    context = model.context_size
    if context is not None:
        # llama-server's is that of all slots together.
        tokens = str(context * model.parallel)
        yield Option(names=("-c", "--ctx-size"), values=(tokens,), key="context_size")
    if gpus:
        key = "" if model.gpu_layers is None else "gpu_layers"
        names = ("-ngl", "--gpu-layers", "--n-gpu-layers")
        yield Option(names=names, values=(_layers(model.gpu_layers),), key=key)
    if gpus > 1:
        # As the estimate of its memory has it; by itself it goes by what is free at that moment.
        yield Option(names=("-ts", "--tensor-split"), values=(",".join("1" * gpus),))
    # It would take fewer layers or less context than asked for, where memory is short.
    yield Option(names=("--fit", "-fit"), values=("off",))


def _layers(count: int | None) -> str:
    return ALL_LAYERS if count is None else str(count)


def _flash_attention(model: ModelSettings, build: ServerBuild) -> Iterator[Option]:
    if model.flash_attention is None:
        return
    known = build.find(FLASH_ATTENTION)
    if known is None or known.value_count:
        values = ("on" if model.flash_attention else "off",)
        yield Option(names=FLASH_ATTENTION, values=values, key="flash_attention")
    elif model.flash_attention:
        # Until summer 2025 it was off, and the option alone turned it on.
        yield Option(names=FLASH_ATTENTION, key="flash_attention")


def _plain_options(model: ModelSettings) -> Iterator[Option]:
    """Yield those whose value is passed on as it is."""
    plain: tuple[tuple[str, object, tuple[str, ...]], ...] = (
        ("cache_type_k", model.cache_type_k, ("-ctk", "--cache-type-k")),
        ("cache_type_v", model.cache_type_v, ("-ctv", "--cache-type-v")),
        ("batch_size", model.batch_size, ("-b", "--batch-size")),
        ("ubatch_size", model.ubatch_size, ("-ub", "--ubatch-size")),
        ("threads", model.threads, ("-t", "--threads")),
        ("mmproj", model.mmproj, ("--mmproj", "-mm")),
        ("pooling", model.pooling, ("--pooling",)),
    )
    for key, value, names in plain:
        if value is not None:
            yield Option(names=names, values=(str(value),), key=key)


def _lora_options(adapters: tuple[Lora, ...], build: ServerBuild) -> Iterator[Option]:
    """Yield one option for all adapters, in builds that take a list; else one for each."""
    if not adapters:
        return
    names = LORA if all(each.scale == 1 for each in adapters) else LORA_SCALED
    each_values = [
        (str(each.path),) if names == LORA else (str(each.path), f"{each.scale:g}")
        for each in adapters
    ]
    known = build.find(names)
    if known is None or known.takes_list:
        together = ",".join(":".join(values) for values in each_values)
        yield Option(names=names, values=(together,), key="lora")
        return
    for values in each_values:
        yield Option(names=names, values=values, key="lora")


def _draft_options(draft: DraftModel | None, gpus: int) -> Iterator[Option]:
    if draft is None:
        return
    names: tuple[str, ...] = ("-md", "--model-draft", "--spec-draft-model")
    yield Option(names=names, values=(str(draft.path),), key="draft_model.path")
    # Builds that know several ways to speculate load the model, but ask it nothing without this.
    yield Option(names=("--spec-type",), values=("draft-simple",))
    if gpus:
        names = ("-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft", "--spec-draft-ngl")
        key = "" if draft.gpu_layers is None else "draft_model.gpu_layers"
        yield Option(names=names, values=(_layers(draft.gpu_layers),), key=key)
    if draft.max_tokens is not None:
        names = ("--spec-draft-n-max", "--draft-max", "--draft-n", "--draft")
        yield Option(names=names, values=(str(draft.max_tokens),), key="draft_model.max_tokens")


def _template_options(model: ModelSettings) -> Iterator[Option]:
    if model.chat_template is not None:
        # With Jinja, which newer builds begin with, the name itself would be the template.
        yield Option(names=("--no-jinja",))
        names = ("--chat-template",)
        yield Option(names=names, values=(model.chat_template,), key="chat_template")
    if model.chat_template_file is not None:
        # Without it, older builds take only templates that they know.
        yield Option(names=("--jinja",))
        names = ("--chat-template-file",)
        yield Option(names=names, values=(str(model.chat_template_file),), key="chat_template_file")


def _task_options(model: ModelSettings) -> Iterator[Option]:
    if model.embeddings:
        yield Option(names=("--embeddings", "--embedding"), key="embeddings")
    if model.rerank:
        yield Option(names=("--rerank", "--reranking"), key="rerank")


def model_files(model: ModelSettings) -> Iterator[tuple[str, Path]]:
    """Yield the files that llama-server reads beside the model, each with the key that names it."""
    for adapter in model.lora:
        yield "lora", adapter.path
    if model.mmproj is not None:
        yield "mmproj", model.mmproj
    if model.draft_model is not None:
        yield "draft_model.path", model.draft_model.path
    if model.chat_template_file is not None:
        yield "chat_template_file", model.chat_template_file
