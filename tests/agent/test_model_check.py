"""What keeps models from being loaded, found without loading them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rolemesh.agent.model_check import ModelCheck
from rolemesh.config.settings import DraftModel, LlamaServer, ModelSettings
from rolemesh.llama.gguf import read_model
from rolemesh.names import ModelId
from tests.agent.builders import model, node_settings

TRUE = LlamaServer(path=Path("/bin/true"))


def at(name: str, path: Path) -> ModelSettings:
    return replace(model(name), path=path)


async def test_a_good_model_has_no_problem(make_model: Callable[..., Path]) -> None:
    settings = node_settings(at("a", make_model()), llama_server=TRUE)
    problems = await ModelCheck().run(settings)
    assert (problems.node, dict(problems.models), problems.of(ModelId("a"))) == ((), {}, "")


async def test_a_missing_file_is_named_and_noticed_when_it_comes(
    tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    path = tmp_path / "new.gguf"
    settings = node_settings(at("a", path), llama_server=TRUE)
    check = ModelCheck()
    problems = await check.run(settings)
    assert problems.node == ()
    assert f"{path} does not exist" in problems.of(ModelId("a"))
    path.write_bytes(make_model().read_bytes())
    assert (await check.run(settings)).of(ModelId("a")) == ""


async def test_a_file_that_is_no_model_is_said(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_text("hello")
    problems = await ModelCheck().run(node_settings(at("a", path), llama_server=TRUE))
    assert str(path) in problems.of(ModelId("a"))


async def test_a_missing_llama_server_concerns_every_model_and_is_said_once(
    make_model: Callable[..., Path],
) -> None:
    absent = LlamaServer(path=Path("/nonexistent/llama-server"))
    path = make_model()
    settings = node_settings(at("a", path), at("b", path), llama_server=absent)
    problems = await ModelCheck().run(settings)
    assert len(problems.node) == 1
    assert "/nonexistent/llama-server" in problems.node[0]
    assert problems.of(ModelId("a")) == problems.of(ModelId("b")) == problems.node[0]


async def test_without_models_nothing_is_missing() -> None:
    problems = await ModelCheck().run(node_settings())
    assert (problems.node, dict(problems.models)) == ((), {})


async def test_it_says_what_a_model_is_and_what_it_takes(make_model: Callable[..., Path]) -> None:
    path = make_model("tiny-a")
    small = replace(at("small", path), context_size=1024)
    large = replace(small, model_id=ModelId("large"), parallel=4, cache_type_k="f32")
    problems = await ModelCheck().run(node_settings(small, large, llama_server=TRUE))
    assert problems.headers[ModelId("small")] == read_model(path)
    one, four = (problems.need_of(ModelId(name)) for name in ("small", "large"))
    assert one is not None
    assert four is not None
    assert one.weights == four.weights < path.stat().st_size
    assert four.kv == 4 * one.kv * 3 // 2  # K in 4 bytes instead of 2
    assert problems.need_of(ModelId("other")) is None


async def test_layers_that_stay_in_ram_take_no_gpu_memory(make_model: Callable[..., Path]) -> None:
    path = make_model()
    settings = node_settings(
        at("whole", path), replace(at("half", path), gpu_layers=2), llama_server=TRUE
    )
    needs = (await ModelCheck().run(settings)).needs
    assert needs[ModelId("half")].kv * 2 == needs[ModelId("whole")].kv
    assert needs[ModelId("half")].total == needs[ModelId("whole")].total


async def test_what_the_operator_says_of_the_memory_counts(make_model: Callable[..., Path]) -> None:
    model = replace(at("a", make_model()), memory_mib=700)
    need = (await ModelCheck().run(node_settings(model, llama_server=TRUE))).need_of(ModelId("a"))
    assert need is not None
    assert (need.total, need.on_each(1), need.on_each(2)) == (700 << 20, 700 << 20, 350 << 20)


async def test_all_files_of_a_model_count_and_are_looked_at_again_when_they_change(
    tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    draft = tmp_path / "draft.gguf"
    draft.write_bytes(make_model("draft").read_bytes())
    alone = at("alone", make_model())
    drafting = replace(alone, model_id=ModelId("b"), draft_model=DraftModel(path=draft))
    by_argument = replace(alone, model_id=ModelId("c"), args=("-md", str(draft)))
    settings = node_settings(alone, drafting, by_argument, llama_server=TRUE)
    check = ModelCheck()
    first = await check.run(settings)
    alone_need, both, same = (first.needs[ModelId(name)] for name in ("alone", "b", "c"))
    assert both == same
    assert both.weights > alone_need.weights
    again = await check.run(settings)
    assert again.needs[ModelId("b")] is both
    assert again.needs[ModelId("c")] is same
    draft.write_bytes(b"no longer")
    changed = await check.run(settings)
    assert changed.needs.keys() == {"alone"}
    assert str(draft) in changed.of(ModelId("b"))


OLD_SERVER = """#!/bin/sh
test "$1" = --version && echo "version: 5000 (abcdef)" || cat <<END
-m,    --model FNAME                    model path
--host HOST                             where
--port PORT                             which
-c,    --ctx-size N                     size of the prompt context
-np,   --parallel N                     slots
-ngl,  --gpu-layers N                   layers
-fa,   --flash-attn                     enable Flash Attention
END
"""


async def test_a_build_of_old_takes_more_unless_flash_attention_is_asked_for(
    tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    program = tmp_path / "llama-server"
    program.write_text(OLD_SERVER)
    program.chmod(0o755)
    plain = replace(at("plain", make_model()), context_size=65536)
    asked = replace(plain, model_id=ModelId("asked"), flash_attention=True)
    problems = await ModelCheck().run(
        node_settings(plain, asked, llama_server=LlamaServer(path=program))
    )
    assert (problems.node, dict(problems.models)) == ((), {})
    without, with_it = (problems.needs[ModelId(name)].compute for name in ("plain", "asked"))
    assert without > 65536 * 512 * 2 * 4  # the scores of two heads
    assert with_it < without
