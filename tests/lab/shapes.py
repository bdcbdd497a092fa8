"""Model files of any shape without weights: what a real model's memory is made of, in no space.

The data of such a file is a hole: all weights are zero and the disk holds only the header. Real
llama-servers load them and allocate what they would for a model of that shape; what they then say
is of no interest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf
import numpy as np

Type = gguf.GGMLQuantizationType
TYPES = {kind.name: kind for kind in Type}
Tensor = tuple[str, tuple[int, ...], Type]

PADDING: Final = 32  # GGUF's default alignment


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The dimensions of a model; of an architecture's own keys those it needs.

    `weights` is the type of its matrices. `window`: tokens that its sliding-window layers see.
    `latent`: the width of compressed keys and values (deepseek2). `state`: that of a recurrent
    model's (mamba). `experts`: how many a layer has, `experts_used` of them for each token.
    """

    architecture: str = "llama"
    layers: int = 4
    embedding: int = 512
    heads: int = 8
    kv_heads: int = 8
    head_size: int = 0
    feed_forward: int = 1536
    vocabulary: int = 32_000
    context: int = 32_768
    weights: str = "F16"
    window: int = 0
    latent: int = 0
    state: int = 0
    experts: int = 0
    experts_used: int = 0
    tied: bool = False

    @property
    def key_size(self) -> int:
        """The width of one head's keys and values."""
        return self.head_size or self.embedding // self.heads


def write_shape(shape: ModelShape, path: Path) -> Path:
    """Write a file of `shape` to `path`, and return that."""
    writer = gguf.GGUFWriter(path, shape.architecture)
    _describe(writer, shape)
    _add_vocabulary(writer, shape.vocabulary)
    data_bytes = 0
    for name, dimensions, kind in tensors(shape):
        size = _bytes_of(dimensions, kind)
        # NumPy's order of the dimensions: the row's length last.
        writer.add_tensor_info(name, dimensions[::-1], np.dtype(np.float16), size, kind)
        data_bytes += -(-size // PADDING) * PADDING
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        start = -(-file.seek(0, 2) // PADDING) * PADDING
        file.truncate(start + data_bytes)
    return path


def tensors(shape: ModelShape) -> Iterator[Tensor]:
    """Yield name, dimensions and type of each tensor, as llama.cpp expects them."""
    kind = TYPES[shape.weights]
    yield "token_embd.weight", (shape.embedding, shape.vocabulary), kind
    if shape.architecture == "bert":
        yield "token_types.weight", (shape.embedding, 2), Type.F32
        yield "position_embd.weight", (shape.embedding, shape.context), Type.F16
        yield from _vectors("token_embd_norm", shape.embedding)
    else:
        yield "output_norm.weight", (shape.embedding,), Type.F32
        if not shape.tied:
            yield "output.weight", (shape.embedding, shape.vocabulary), kind
    for layer in range(shape.layers):
        for name, dimensions, layer_kind in _layer(shape, kind):
            yield f"blk.{layer}.{name}", dimensions, layer_kind


def _layer(shape: ModelShape, kind: Type) -> Iterator[Tensor]:
    if shape.architecture == "mamba":
        yield from _mamba_layer(shape, kind)
    elif shape.architecture == "bert":
        yield from _bert_layer(shape, kind)
    else:
        yield "attn_norm.weight", (shape.embedding,), Type.F32
        yield from _latent(shape, kind) if shape.latent else _attention(shape, kind)
        yield "ffn_norm.weight", (shape.embedding,), Type.F32
        yield from _feed_forward(shape, kind)


def _attention(shape: ModelShape, kind: Type) -> Iterator[Tensor]:
    width, size = shape.embedding, shape.key_size
    yield "attn_q.weight", (width, shape.heads * size), kind
    yield "attn_k.weight", (width, shape.kv_heads * size), kind
    yield "attn_v.weight", (width, shape.kv_heads * size), kind
    yield "attn_output.weight", (shape.heads * size, width), kind
    if shape.architecture in {"gemma3", "qwen3", "qwen3moe"}:
        yield "attn_q_norm.weight", (size,), Type.F32
        yield "attn_k_norm.weight", (size,), Type.F32
    if shape.architecture == "gemma3":
        yield "post_attention_norm.weight", (width,), Type.F32
        yield "post_ffw_norm.weight", (width,), Type.F32


def _latent(shape: ModelShape, kind: Type) -> Iterator[Tensor]:
    """The attention of deepseek2: keys and values are one compressed vector per token."""
    width, rope = shape.embedding, 64
    inner = shape.key_size
    yield "attn_q.weight", (width, shape.heads * (inner + rope)), kind
    yield "attn_kv_a_mqa.weight", (width, shape.latent + rope), kind
    yield "attn_kv_a_norm.weight", (shape.latent,), Type.F32
    yield "attn_k_b.weight", (inner, shape.latent, shape.heads), Type.F16
    yield "attn_v_b.weight", (shape.latent, inner, shape.heads), Type.F16
    yield "attn_output.weight", (shape.heads * inner, width), kind


def _feed_forward(shape: ModelShape, kind: Type) -> Iterator[Tensor]:
    width, inner = shape.embedding, shape.feed_forward
    if not shape.experts:
        yield "ffn_gate.weight", (width, inner), kind
        yield "ffn_up.weight", (width, inner), kind
        yield "ffn_down.weight", (inner, width), kind
        return
    yield "ffn_gate_inp.weight", (width, shape.experts), Type.F32
    yield "ffn_gate_exps.weight", (width, inner, shape.experts), kind
    yield "ffn_up_exps.weight", (width, inner, shape.experts), kind
    yield "ffn_down_exps.weight", (inner, width, shape.experts), kind
    if shape.architecture == "deepseek2":
        yield "ffn_gate_shexp.weight", (width, inner), kind
        yield "ffn_up_shexp.weight", (width, inner), kind
        yield "ffn_down_shexp.weight", (inner, width), kind


def _bert_layer(shape: ModelShape, kind: Type) -> Iterator[Tensor]:
    width, inner = shape.embedding, shape.feed_forward
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        yield f"{name}.weight", (width, width), kind
        yield f"{name}.bias", (width,), Type.F32
    yield "ffn_up.weight", (width, inner), kind
    yield "ffn_up.bias", (inner,), Type.F32
    yield "ffn_down.weight", (inner, width), kind
    yield "ffn_down.bias", (width,), Type.F32
    yield from _vectors("attn_output_norm", width)
    yield from _vectors("layer_output_norm", width)


def _mamba_layer(shape: ModelShape, kind: Type) -> Iterator[Tensor]:
    width, inner, rank = shape.embedding, 2 * shape.embedding, shape.embedding // 16
    yield "attn_norm.weight", (width,), Type.F32
    yield "ssm_in.weight", (width, 2 * inner), kind
    yield "ssm_conv1d.weight", (4, inner), Type.F32
    yield "ssm_conv1d.bias", (inner,), Type.F32
    yield "ssm_x.weight", (inner, rank + 2 * shape.state), kind
    yield "ssm_dt.weight", (rank, inner), Type.F32
    yield "ssm_dt.bias", (inner,), Type.F32
    yield "ssm_a", (shape.state, inner), Type.F32
    yield "ssm_d", (inner,), Type.F32
    yield "ssm_out.weight", (inner, width), kind


def _vectors(name: str, width: int) -> Iterator[Tensor]:
    yield f"{name}.weight", (width,), Type.F32
    yield f"{name}.bias", (width,), Type.F32


def _bytes_of(dimensions: tuple[int, ...], kind: Type) -> int:
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(dimensions, dtype=np.int64)) // block_values * block_bytes


def _describe(writer: gguf.GGUFWriter, shape: ModelShape) -> None:
    writer.add_name(f"shape of {shape.architecture}")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embedding)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_block_count(shape.layers)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(1 if shape.latent else shape.kv_heads)
    if shape.latent:
        _describe_latent(writer, shape)
    elif shape.head_size:
        writer.add_key_length(shape.head_size)
        writer.add_value_length(shape.head_size)
    if shape.window:
        writer.add_sliding_window(shape.window)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
        writer.add_expert_feed_forward_length(shape.feed_forward)
    if shape.state:
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(2 * shape.embedding)
        writer.add_ssm_state_size(shape.state)
        writer.add_ssm_time_step_rank(shape.embedding // 16)
    if shape.architecture == "bert":
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.MEAN)
        writer.add_token_type_count(2)


def _describe_latent(writer: gguf.GGUFWriter, shape: ModelShape) -> None:
    writer.add_kv_lora_rank(shape.latent)
    writer.add_key_length(shape.latent + 64)
    writer.add_value_length(shape.latent)
    writer.add_key_length_mla(shape.key_size + 64)
    writer.add_value_length_mla(shape.key_size)
    writer.add_rope_dimension_count(64)
    writer.add_leading_dense_block_count(0)
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_scale(1.0)


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Add tokens that mean nothing; only the bytes' own are needed for a server to start."""
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in letters]
    names = [chr(code) for code in letters] + [chr(256 + place) for place in range(len(others))]
    names += [f"<{number}>" for number in range(size - len(names))]
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names)
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_token_merges(["! !"])
    writer.add_bos_token_id(size - 1)
    writer.add_eos_token_id(size - 2)
