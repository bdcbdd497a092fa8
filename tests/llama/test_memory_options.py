"""Which arguments count, and which of several."""

from pathlib import Path

import pytest

from rolemesh.llama.gguf_types import CACHE_TYPES
from rolemesh.llama.memory_options import MemoryOptions, read_options

Q8, F16 = CACHE_TYPES["q8_0"], CACHE_TYPES["f16"]


def read(text: str) -> MemoryOptions:
    return read_options(text.split())


def test_without_arguments_it_is_as_llama_server_has_it() -> None:
    found = read("llama-server -m /m.gguf --host /run/s --slots --alias -c")
    assert found == MemoryOptions()
    assert (found.batch, found.ubatch, found.cache_k, found.gpu_layers) == (2048, 512, F16, None)


def test_each_name_of_an_option_means_the_same() -> None:
    short = read(
        "-c 8192 -np 2 -b 64 -ub 32 -fa off -ctk q8_0 -ctv q8_0 -ngl 7 -nkvo -kvu -ncmoe 3"
    )
    long = read(
        "--ctx-size 8192 --parallel 2 --batch-size 64 --ubatch_size 32 --flash-attn off "
        "--cache-type-k q8_0 --cache-type-v q8_0 --n-gpu-layers 7 --no-kv-offload --kv-unified "
        "--n-cpu-moe 3"
    )
    assert short == long
    assert (short.context, short.parallel, short.batch, short.ubatch) == (8192, 2, 64, 32)
    assert (short.cache_k, short.flash_attention, short.gpu_layers) == (Q8, False, 7)
    assert (short.cache_in_ram, short.unified, short.experts_in_ram) == (True, True, 3)


def test_the_last_of_equal_options_counts() -> None:
    found = read("-c 1 -ngl 5 --ctx-size 2 -fa off -ngl all -fa on -kvu --no-kv-unified")
    assert (found.context, found.gpu_layers, found.flash_attention) == (2, None, True)
    assert not found.unified


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-fa -c 1", True),
        ("-c 1 -fa", True),
        ("-fa auto", True),
        ("-fa 0", False),
        ("-fa off -fa -np 1", True),
    ],
)
def test_flash_attention_may_have_a_value(text: str, expected: bool) -> None:
    assert read(text).flash_attention is expected


def test_zero_and_less_stand_for_what_llama_server_chooses() -> None:
    assert read("-c 0").context is None
    assert read("-ngl -1").gpu_layers is read("-ngl auto").gpu_layers is None
    assert (read("-np -1").parallel, read("-np -1").unified) == (4, True)


def test_what_cannot_be_understood_is_left_to_llama_server_to_refuse() -> None:
    assert read("-c many -ctk q9 -ngl some --pooling") == MemoryOptions()


def test_files_beside_the_model_are_found() -> None:
    found = read(
        "-mm /p.gguf -md /d.gguf -ngld 3 -ctkd q8_0 --lora /a.gguf,/b.gguf --lora-scaled /c.gguf:0.5"
    )
    assert found.adapters == tuple(map(Path, ("/a.gguf", "/b.gguf", "/c.gguf")))
    assert (found.mmproj, found.draft) == (Path("/p.gguf"), Path("/d.gguf"))
    drafting = found.for_draft
    assert (drafting.gpu_layers, drafting.cache_k, drafting.cache_v) == (3, Q8, F16)
    assert drafting.draft is None


def test_overrides_add_up() -> None:
    found = read("-ot a=CPU,b=CUDA0 -ot c=d=CPU -ot nothing")
    assert found.overrides == (("a", "CPU"), ("b", "CUDA0"), ("c=d", "CPU"))


def test_tasks_say_what_is_computed_at_the_end() -> None:
    assert read("--embeddings --pooling none").pooling == "none"
    assert (read("--rerank").embeddings, read("--rerank").pooling) == (True, "rank")
    assert read("--spec-type draft-mtp").uses_own_drafts
    assert not read("--spec-type ngram-mod").uses_own_drafts
