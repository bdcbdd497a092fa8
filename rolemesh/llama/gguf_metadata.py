"""The key/value pairs of a GGUF header: the few that say what a model needs are kept.

Everything else, above all the vocabulary, is skipped. Keys are those of docs/gguf.md of
github.com/ggml-org/ggml and of src/llama-arch.cpp of llama.cpp.
"""

import struct
from dataclasses import dataclass
from typing import Any, Final

from rolemesh.llama.gguf_bytes import ARRAY, SCALARS, STRING, ByteReader, Damaged

Value = int | float | str | tuple[int | float, ...]

DEFAULT_ALIGNMENT: Final = 32
_MAX_KEY_BYTES: Final = 1024
_MAX_TEXT_BYTES: Final = 4096
_MAX_ARRAY: Final = 1024  # per-layer arrays have as many values as the model has layers
_MAX_KEPT: Final = 65_536  # values of all arrays together

_GENERAL: Final = frozenset({
    "general.alignment", "general.architecture", "general.file_type", "general.name",
    "general.type", "split.count", "split.no", "split.tensors.count",
})  # fmt: skip
_TOKENS: Final = "tokenizer.ggml.tokens"

# Of the keys that begin with the architecture's name: what decides how much memory is needed.
_OF_ARCHITECTURE: Final = frozenset({
    "attention.causal", "attention.compress_ratios", "attention.head_count",
    "attention.head_count_kv", "attention.indexer.key_length", "attention.key_length",
    "attention.key_length_mla", "attention.key_length_swa", "attention.kv_lora_rank",
    "attention.recurrent_layers",
    "attention.shared_kv_layers", "attention.sliding_window", "attention.sliding_window_pattern",
    "attention.value_length", "attention.value_length_mla", "attention.value_length_swa",
    "block_count", "context_length", "decoder_block_count", "embedding_length",
    "embedding_length_per_layer_input",
    "expert_count", "expert_feed_forward_length", "expert_shared_count",
    "expert_shared_feed_forward_length", "expert_used_count", "feed_forward_length",
    "full_attention_interval", "kda.head_dim", "leading_dense_block_count",
    "nextn_predict_layers", "pooling_type", "rope.dimension_count", "shortconv.l_cache",
    "ssm.conv_kernel", "ssm.group_count", "ssm.inner_size", "ssm.state_size",
    "ssm.time_step_rank", "token_shift_count", "vocab_size", "wkv.head_size",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What was kept, by whole key; `token_count` is the size of the vocabulary, 0 without one."""

    values: dict[str, Value]
    token_count: int

    @property
    def architecture(self) -> str | None:
        """Name of the model's architecture."""
        return self.text("general.architecture")

    @property
    def alignment(self) -> int:
        """What the offsets of the data are multiples of; raises Damaged when that cannot be."""
        alignment = self.number("general.alignment", DEFAULT_ALIGNMENT)
        if alignment <= 0 or alignment & (alignment - 1):
            msg = f"claims an alignment of {alignment} bytes"
            raise Damaged(msg)
        return alignment

    def text(self, key: str) -> str | None:
        """Return a value that is a text."""
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str, default: int = 0) -> int:
        """Return a value that is a whole number."""
        value = self.values.get(key)
        return value if isinstance(value, int) else default

    def of_architecture(self) -> dict[str, Value]:
        """Return the values of the model's architecture, by keys without its name."""
        prefix = f"{self.architecture}."
        return {
            key.removeprefix(prefix): value
            for key, value in self.values.items()
            if key.startswith(prefix)
        }


def read_metadata(reader: ByteReader, key_count: int) -> Metadata:
    """Read all pairs; raises Damaged."""
    values: dict[str, Value] = {}
    seen: set[str] = set()
    token_count = kept = 0
    for _ in range(key_count):
        key = reader.text(_MAX_KEY_BYTES)
        (kind,) = reader.unpack("<I")
        if key in seen:
            msg = "has two values of one metadata key"
            raise Damaged(msg)
        seen.add(key)
        value, count = _read_value(reader, kind, wanted=_is_wanted(key))
        if key == _TOKENS:
            token_count = count
        if value is not None:
            values[key] = value
            kept += count
        if kept > _MAX_KEPT:
            msg = "has more metadata than any model needs"
            raise Damaged(msg)
    return Metadata(values=values, token_count=token_count)


def _is_wanted(key: str) -> bool:
    return key in _GENERAL or key.partition(".")[2] in _OF_ARCHITECTURE


def _read_value(reader: ByteReader, kind: int, *, wanted: bool) -> tuple[Value | None, int]:
    """Read or skip one value; return it (None if skipped) and how many values it was."""
    if kind == ARRAY:
        return _read_array(reader, wanted=wanted)
    if kind == STRING:
        if wanted:
            return reader.text(_MAX_TEXT_BYTES), 1
        reader.skip_texts(1)
        return None, 1
    layout = _layout(kind)
    if wanted:
        return _plain(reader.unpack(f"<{layout}")[0]), 1
    reader.skip(struct.calcsize(layout))
    return None, 1


def _read_array(reader: ByteReader, *, wanted: bool) -> tuple[Value | None, int]:
    kind, count = reader.unpack("<IQ")
    if kind == STRING:
        reader.skip_texts(count)
        return None, count
    layout = _layout(kind)
    if wanted and count <= _MAX_ARRAY:
        return tuple(map(_plain, reader.unpack(f"<{count}{layout}"))), count
    reader.skip(count * struct.calcsize(layout))
    return None, count


def _layout(kind: int) -> str:
    if kind not in SCALARS:
        msg = f"has a metadata value of unknown type {kind}"
        raise Damaged(msg)
    return SCALARS[kind]


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value
