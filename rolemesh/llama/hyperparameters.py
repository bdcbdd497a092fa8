"""What a model's header says about each of its layers: what it keeps of a token, what it computes.

Source: load_hparams of llama.cpp (src/llama-model.cpp, src/models/*.cpp), src/llama-hparams.cpp,
and llama_model::create_memory. Which layers have a sliding window is in part only there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rolemesh.llama.gguf import GgufHeader

MAX_LAYERS: Final = 4096

# Every which layer sees the whole context, where the file does not say: `period`, and whether that
# is the first of each group instead of the last. 1: all layers do.
_WINDOW_PERIODS: Final[Mapping[str, tuple[int, bool]]] = {
    "afmoe": (4, False), "cohere2": (4, False), "exaone-moe": (4, False), "exaone4": (4, False),
    "gemma-embedding": (6, False), "gemma2": (2, False), "gemma3": (6, False),
    "gemma3n": (5, False), "gpt-oss": (2, False), "laguna": (4, True), "llama4": (4, False),
    "modern-bert": (3, True), "olmo2": (4, False), "phi3": (1, False), "plamo3": (8, False),
    "smallthinker": (4, True),
}  # fmt: skip
_WINDOWS: Final = {"gemma2": 4096, "llama4": 8192}

# Those that look at a text as a whole and keep nothing of it.
_WITHOUT_CACHE: Final = frozenset({
    "bert", "dream", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llada",
    "llada-moe", "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe", "rnd1", "t5encoder",
})  # fmt: skip
# Of those, the ones that have no output layer either.
_WITHOUT_OUTPUT: Final = frozenset({
    "bert", "eurobert", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert",
    "nomic-bert-moe", "t5encoder",
})  # fmt: skip
_RECURRENT: Final = frozenset({
    "arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7",
})  # fmt: skip
_ATTENTION_AND_STATE: Final = frozenset({"falcon-h1"})
_EVERY_FOURTH_ATTENDS: Final = frozenset({"qwen35", "qwen35moe", "qwen3next"})
_WITH_INDEX: Final = frozenset({"deepseek32", "glm-dsa"})
_SHARED_KV_LAYERS: Final = {"gemma3n": 15}

# Their caches follow rules of their own, which would be guessed.
UNKNOWN_ARCHITECTURES: Final = frozenset({"deepseek4", "minimax-m3"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What a layer keeps: `key` and `value` numbers for each token, `state` for each slot.

    `key` includes what is stored like keys. `window`: of so many tokens only; 0: of all.
    """

    key: int = 0
    value: int = 0
    window: int = 0
    state: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """The widths that a model computes with, in numbers per token; the largest of all layers.

    `queries` are those of all heads; `attention` what it has at hand of a token at once. `inner` is
    the feed-forward network's (of all experts that a token uses: `experts` many, 0 without),
    `recurrent` a recurrent layer's, `beside` what all layers are given beside the embedding.
    `drafting` are further layers, which predict more than one token. `pools`: it makes one vector
    of a text; `speaks`: it has an output layer.
    """

    layers: tuple[Layer, ...]
    drafting: tuple[Layer, ...]
    embedding: int
    vocabulary: int
    heads: int
    queries: int
    attention: int
    inner: int
    experts: int
    recurrent: int
    beside: int
    pools: bool
    speaks: bool


def read_hyperparameters(header: GgufHeader) -> Hyperparameters | None:
    """Return them; None where the header does not say enough to tell the memory by."""
    count, embedding = header.block_count, header.embedding_length
    if not count or count > MAX_LAYERS or not embedding:
        return None
    if header.architecture in UNKNOWN_ARCHITECTURES:
        return None
    heads = _per_layer(header, "attention.head_count", count, 0)
    most = max(heads)
    key = header.number("attention.key_length", embedding // most if most else 0)
    own = count - header.number("nextn_predict_layers")
    layers = _layers(header, count, heads, key)
    used = header.number("expert_used_count")
    return Hyperparameters(
        layers=layers[:own],
        drafting=layers[own:],
        embedding=embedding,
        vocabulary=header.vocabulary or 0,
        heads=most,
        queries=most * key,
        attention=_attention(header, layers, most, key),
        inner=_inner(header, count, used),
        experts=used,
        recurrent=_recurrent_width(header),
        beside=count * header.number("embedding_length_per_layer_input"),
        speaks=header.architecture not in _WITHOUT_OUTPUT,
        pools=header.number("pooling_type") != 0,
    )


def _layers(header: GgufHeader, count: int, heads: tuple[int, ...], key: int) -> tuple[Layer, ...]:
    architecture = header.architecture or ""
    if architecture in _WITHOUT_CACHE:
        return (Layer(),) * count
    kv_heads = _per_layer(header, "attention.head_count_kv", count, None) or heads
    value = header.number("attention.value_length", key)
    windows = _windows(header, count)
    recurrent = _recurrent_layers(header, count, kv_heads)
    with_cache = count - header.number(
        "attention.shared_kv_layers", _SHARED_KV_LAYERS.get(architecture, 0)
    )
    index = header.number("attention.indexer.key_length") if architecture in _WITH_INDEX else 0
    state = _state(header)
    layers = []
    for number in range(count):
        state_here = state if recurrent[number] else 0
        attends = not recurrent[number] or architecture in _ATTENTION_AND_STATE
        if not attends or number >= with_cache:
            layers.append(Layer(state=state_here))
            continue
        window = windows[number]
        key_here = header.number("attention.key_length_swa", key) if window else key
        value_here = header.number("attention.value_length_swa", value) if window else value
        layers.append(
            Layer(
                key=kv_heads[number] * key_here + index,
                value=0 if _is_latent(header) else kv_heads[number] * value_here,
                window=window,
                state=state_here,
            )
        )
    return tuple(layers)


def _windows(header: GgufHeader, count: int) -> tuple[int, ...]:
    """Return the sliding window of each layer, 0 where it has none.

    Of an architecture unknown here, whose file does not say which layers have one, none has: that
    is too much memory, never too little.
    """
    architecture = header.architecture or ""
    window = header.number("attention.sliding_window", _WINDOWS.get(architecture, 0))
    period, dense_first = _WINDOW_PERIODS.get(architecture, (1, False))
    stated = header.values.get("attention.sliding_window_pattern")
    if isinstance(stated, tuple) and len(stated) >= count:
        return tuple(window if each else 0 for each in stated[:count])
    if isinstance(stated, int):
        period = stated
    if window <= 0 or period < 0:
        return (0,) * count
    dense = 0 if dense_first else period - 1
    return tuple(
        window if period == 0 or number % period != dense else 0 for number in range(count)
    )


def _recurrent_layers(
    header: GgufHeader, count: int, kv_heads: tuple[int, ...]
) -> tuple[bool, ...]:
    architecture = header.architecture
    stated = header.values.get("attention.recurrent_layers")
    if isinstance(stated, tuple) and len(stated) >= count:
        return tuple(bool(each) for each in stated[:count])
    if architecture in _RECURRENT or architecture in _ATTENTION_AND_STATE:
        return (True,) * count
    every = header.number(
        "full_attention_interval", 4 if architecture in _EVERY_FOURTH_ATTENDS else 0
    )
    if every > 0:
        own = count - header.number("nextn_predict_layers")
        return tuple(number < own and (number + 1) % every != 0 for number in range(count))
    has_state = any(
        header.number(key) for key in ("ssm.conv_kernel", "shortconv.l_cache", "wkv.head_size")
    )
    return tuple(has_state and not heads for heads in kv_heads)


def _state(header: GgufHeader) -> int:
    """Return the numbers (of 4 bytes) that a recurrent layer keeps for each slot.

    As n_embd_r and n_embd_s of src/llama-hparams.cpp.
    """
    embedding = header.embedding_length or 0
    head = header.number("wkv.head_size")
    if head:
        return embedding * (header.number("token_shift_count", 2) + head)
    cached = header.number("shortconv.l_cache")
    if cached:
        return embedding * (cached - 1)
    inner, state = header.number("ssm.inner_size"), header.number("ssm.state_size")
    kernel = max(0, header.number("ssm.conv_kernel") - 1)
    delta = header.number("kda.head_dim")
    if delta:
        width = delta * max(_per_layer(header, "attention.head_count", 1, 0))
        return kernel * 3 * width + delta * width
    return kernel * (inner + 2 * header.number("ssm.group_count") * state) + inner * state


def _recurrent_width(header: GgufHeader) -> int:
    if header.number("wkv.head_size"):
        return header.embedding_length or 0
    groups = header.number("ssm.group_count", 1)
    return header.number("ssm.inner_size") + 2 * groups * header.number("ssm.state_size")


def _attention(header: GgufHeader, layers: tuple[Layer, ...], heads: int, key: int) -> int:
    if not _is_latent(header):
        return 5 * heads * key + max((layer.key for layer in layers), default=0)
    # The queries and what comes of them, each compressed and not.
    lengths = ("key_length_mla", "value_length", "value_length_mla")
    whole = key + sum(header.number(f"attention.{length}") for length in lengths)
    return heads * whole + 4 * (header.embedding_length or 0)


def _inner(header: GgufHeader, count: int, used: int) -> int:
    dense = max(_per_layer(header, "feed_forward_length", count, 0))
    if not used:
        return dense
    expert = header.number("expert_feed_forward_length", dense)
    shared = header.number(
        "expert_shared_feed_forward_length", header.number("expert_shared_count") * expert
    )
    return max(used * expert, shared)


def _is_latent(header: GgufHeader) -> bool:
    """Tell whether keys and values of all heads are one compressed vector (MLA)."""
    keys = ("attention.key_length_mla", "attention.value_length_mla")
    return all(header.number(key) for key in keys)


def _per_layer(header: GgufHeader, key: str, count: int, default: int | None) -> tuple[int, ...]:
    """Return a value of each layer, given once or as an array; () when not given at all."""
    value = header.values.get(key)
    if isinstance(value, tuple):
        numbers = tuple(int(each) for each in value)
        return (numbers + (numbers[-1:] or (0,)) * count)[:count]
    if isinstance(value, int):
        return (value,) * count
    return () if default is None else (default,) * count
