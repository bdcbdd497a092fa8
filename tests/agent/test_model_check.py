"""What keeps models from being loaded, found without loading them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rolemesh.agent.model_check import ModelCheck
from rolemesh.config.settings import LlamaServer, ModelSettings
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
