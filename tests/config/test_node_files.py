from pathlib import Path

import pytest

from rolemesh.config.node_files import node_file_warnings
from rolemesh.config.settings import LlamaServer, ModelSettings, NodeSettings
from rolemesh.names import ModelId, NodeId, Role


def node(path: Path, program: Path | None) -> NodeSettings:
    model = ModelSettings(
        model_id=ModelId("qwen2.5"), path=path, roles=(Role("r"),), origin="f.yaml:3"
    )
    return NodeSettings(
        node_id=NodeId("n"),
        models={model.model_id: model},
        llama_server=LlamaServer(path=program, origin="f.yaml:1"),
    )


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "llama-server"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0")
    return path


def texts(settings: NodeSettings) -> list[str]:
    return list(map(str, node_file_warnings(settings)))


def test_nothing_is_said_about_what_is_there(weights: Path, program: Path) -> None:
    assert texts(node(weights, program)) == []


def test_a_model_that_is_missing_or_no_gguf_is_named(tmp_path: Path, program: Path) -> None:
    gone = tmp_path / "gone.gguf"
    assert texts(node(gone, program)) == [
        f'f.yaml:3: models."qwen2.5".path: {gone} cannot be read: No such file or directory'
    ]
    assert texts(node(program, program)) == [
        f'f.yaml:3: models."qwen2.5".path: {program} is not a GGUF file'
    ]
    assert texts(node(tmp_path, program)) == [
        f'f.yaml:3: models."qwen2.5".path: {tmp_path} cannot be read: Is a directory'
    ]


def test_a_program_that_cannot_be_run_is_named(tmp_path: Path, weights: Path) -> None:
    expected = "f.yaml:1: llama_server.path: expected a program, found"
    gone = tmp_path / "gone"
    assert texts(node(weights, gone)) == [f"{expected} {gone}: No such file or directory"]
    assert texts(node(weights, tmp_path)) == [f"{expected} {tmp_path}, a directory"]
    assert texts(node(weights, weights)) == [
        f"{expected} {weights}, a file that may not be executed"
    ]


def test_without_a_path_the_program_is_looked_for_on_the_search_path(
    weights: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(program.parent))
    assert texts(node(weights, None)) == []
    monkeypatch.setenv("PATH", "/nowhere")
    assert texts(node(weights, None)) == [
        "llama_server.path: not set, and there is no llama-server on $PATH"
    ]


def test_without_models_no_program_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert texts(NodeSettings(node_id=NodeId("n"))) == []
