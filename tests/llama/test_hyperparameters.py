"""What the header of a model says of its layers."""

import pytest

from rolemesh.llama.gguf import GgufHeader
from rolemesh.llama.gguf_metadata import Value
from rolemesh.llama.hyperparameters import Hyperparameters, read_hyperparameters
from tests.llama.model_headers import header

WIDTHS: dict[str, Value] = {"attention_head__count": 8, "attention_head__count__kv": 2}


def shape_of(model: GgufHeader) -> Hyperparameters:
    found = read_hyperparameters(model)
    assert found is not None
    return found


def windows(model: GgufHeader) -> list[int]:
    return [layer.window for layer in shape_of(model).layers]


def test_heads_may_differ_from_layer_to_layer() -> None:
    found = shape_of(header("openelm", 3, 512, attention_head__count=(4, 8, 8),
                            attention_head__count__kv=(1, 2)))  # fmt: skip
    assert [layer.key for layer in found.layers] == [64, 128, 128]
    assert (found.heads, found.queries) == (8, 512)


def test_without_heads_for_keys_there_are_as_many_as_for_queries() -> None:
    (layer,) = shape_of(header("gpt2", 1, 768, attention_head__count=12)).layers
    assert (layer.key, layer.value) == (768, 768)


@pytest.mark.parametrize(
    ("architecture", "values", "expected"),
    [
        ("gemma3", {}, [9, 9, 9, 9, 9, 0, 9]),
        ("gpt-oss", {}, [9, 0, 9, 0, 9, 0, 9]),
        ("smallthinker", {}, [0, 9, 9, 9, 0, 9, 9]),
        ("phi3", {}, [0] * 7),
        ("of-tomorrow", {}, [0] * 7),
        ("of-tomorrow", {"attention_sliding__window__pattern": 2}, [9, 0, 9, 0, 9, 0, 9]),
        ("gemma3", {"attention_sliding__window__pattern": 0}, [9] * 7),
        (
            "gemma4",
            {"attention_sliding__window__pattern": (1, 1, 0, 1, 1, 0, 1)},
            [9, 9, 0, 9, 9, 0, 9],
        ),
    ],
)
def test_which_layers_have_a_window_is_in_the_file_or_known_of_the_architecture(
    architecture: str, values: dict[str, Value], expected: list[int]
) -> None:
    model = header(architecture, 7, 512, attention_sliding__window=9, **WIDTHS, **values)
    assert windows(model) == expected


def test_some_windows_are_not_in_the_file() -> None:
    assert windows(header("llama4", 4, 512, **WIDTHS)) == [8192, 8192, 8192, 0]
    assert windows(header("llama4", 4, 512, attention_sliding__window=0, **WIDTHS)) == [0] * 4


def test_layers_with_a_window_may_have_other_widths() -> None:
    found = shape_of(header("gemma4", 2, 512, attention_sliding__window=9,
                            attention_sliding__window__pattern=(1, 0),
                            attention_key__length=512, attention_value__length=512,
                            attention_key__length__swa=256, attention_value__length__swa=256,
                            **WIDTHS)).layers  # fmt: skip
    assert [(layer.key, layer.value) for layer in found] == [(512, 512), (1024, 1024)]


def test_layers_that_share_a_cache_have_none() -> None:
    found = shape_of(header("gemma3n", 20, 512, **WIDTHS)).layers
    assert [bool(layer.key) for layer in found] == [True] * 5 + [False] * 15


def test_layers_without_heads_for_keys_keep_a_state() -> None:
    found = shape_of(header("lfm2", 3, 512, attention_head__count=8,
                            attention_head__count__kv=(0, 2, 0), shortconv_l__cache=3))  # fmt: skip
    assert [(layer.key, layer.state) for layer in found.layers] == [(0, 1024), (128, 0), (0, 1024)]


def test_other_recurrent_models() -> None:
    (rwkv,) = shape_of(header("rwkv7", 1, 512, wkv_head__size=64)).layers
    assert (rwkv.key, rwkv.state) == (0, 512 * (2 + 64))
    (both,) = shape_of(header("falcon-h1", 1, 512, ssm_conv__kernel=4, ssm_inner__size=1024,
                              ssm_state__size=64, ssm_group__count=1, **WIDTHS)).layers  # fmt: skip
    assert (both.key, both.state) == (128, 3 * (1024 + 128) + 64 * 1024)
    every = shape_of(header("qwen35", 8, 512, ssm_conv__kernel=4, ssm_inner__size=8,
                            ssm_state__size=8, ssm_group__count=1, **WIDTHS)).layers  # fmt: skip
    assert [bool(layer.key) for layer in every] == [False, False, False, True] * 2
    stated = shape_of(header("qwen35", 3, 512, ssm_conv__kernel=4, ssm_inner__size=8,
                             ssm_state__size=8, attention_recurrent__layers=(0, 1, 1),
                             **WIDTHS)).layers  # fmt: skip
    assert [bool(layer.key) for layer in stated] == [True, False, False]


def test_layers_that_predict_more_than_one_token_are_told_apart() -> None:
    found = shape_of(header("qwen35", 5, 512, nextn__predict__layers=1, ssm_conv__kernel=4,
                            ssm_inner__size=8, ssm_state__size=8, **WIDTHS))  # fmt: skip
    assert [bool(layer.state) for layer in found.layers] == [True, True, True, False]
    assert [(layer.key, layer.state) for layer in found.drafting] == [(128, 0)]


def test_an_index_is_kept_beside_compressed_keys() -> None:
    latent: dict[str, Value] = {
        "attention_key__length": 576, "attention_value__length": 512,
        "attention_key__length__mla": 192, "attention_value__length__mla": 128,
        "attention_indexer_key__length": 128,
    }  # fmt: skip
    model = header("glm-dsa", 1, 4096, attention_head__count=64, attention_head__count__kv=1,
                   **latent)  # fmt: skip
    (layer,) = shape_of(model).layers
    assert (layer.key, layer.value) == (576 + 128, 0)


def test_models_that_only_embed_keep_nothing() -> None:
    found = shape_of(header("nomic-bert", 2, 768, pooling__type=1, **WIDTHS))
    assert not any((layer.key, layer.state) != (0, 0) for layer in found.layers)
    assert (found.pools, found.speaks) == (True, False)
