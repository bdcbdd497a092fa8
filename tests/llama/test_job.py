"""What an instance runs, and everything that may prevent it."""

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import pytest

from rolemesh.config.settings import InstanceSettings, LlamaServer, ModelSettings, NodeSettings
from rolemesh.errors import ConfigError
from rolemesh.llama.job import Job, choose_model, model_parts, prepare_job
from rolemesh.llama.parameters import Parameters
from rolemesh.names import InstanceName, ModelId, NodeId, Role

GPU0 = InstanceName("gpu0")
TOLD = Path("/run/rolemesh/llama/gpu0.json")


def settings(
    *models: ModelSettings, llama_server: LlamaServer | None = None, runs: str | None = None
) -> NodeSettings:
    instance = InstanceSettings(name=GPU0, model=ModelId(runs) if runs else None)
    return NodeSettings(
        node_id=NodeId("box"),
        llama_server=llama_server or LlamaServer(),
        models=MappingProxyType({model.model_id: model for model in models}),
        instances=MappingProxyType({GPU0: instance}),
    )


def model(
    name: str = "coder", path: Path = Path("/m.gguf"), args: tuple[str, ...] = ()
) -> ModelSettings:
    return ModelSettings(
        model_id=ModelId(name),
        path=path,
        roles=(Role("coder"),),
        args=args,
        origin="/etc/rolemesh/node.d/10.yaml:7",
    )


def told(name: str) -> Parameters:
    return Parameters(model_id=ModelId(name), devices=("GPU-1",), generation=3)


def problems(call: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        call()
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "llama-server"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def job_of(node: NodeSettings, parameters: Parameters | None = None, path: str = "/absent") -> Job:
    return prepare_job(
        settings=node,
        instance=GPU0,
        parameters=parameters,
        parameters_path=TOLD,
        socket=Path("/run/x/http.sock"),
        environment={"PATH": path},
    )


def test_what_the_agent_says_goes_before_the_configuration() -> None:
    node = settings(model("a"), model("b"), runs="a")
    assert choose_model(node, GPU0, told("b"), TOLD) == (node.models[ModelId("b")], str(TOLD))
    chosen, source = choose_model(node, GPU0, None, TOLD)
    assert chosen.model_id == "a"
    assert source == "instances.gpu0.model of the node's configuration"


def test_nothing_to_run_names_both_places() -> None:
    assert problems(lambda: choose_model(settings(model("a")), GPU0, None, TOLD)) == [
        "instances.gpu0.model: nothing says what gpu0 runs: expected a model_id here, or "
        "/run/rolemesh/llama/gpu0.json written by the agent"
    ]


def test_an_unknown_model_names_those_there_are() -> None:
    node = settings(model("a"), model("b"))
    assert problems(lambda: choose_model(node, GPU0, told("c"), TOLD)) == [
        "models.c: no such model in the node's configuration; known: a, b "
        "(wanted by /run/rolemesh/llama/gpu0.json)"
    ]


def test_a_job_is_ready_to_be_executed(program: Path, make_model: Callable[..., Path]) -> None:
    path = make_model("tiny-a")
    node = settings(
        model(path=path, args=("-ngl", "9")),
        llama_server=LlamaServer(args=("--mlock",)),
        runs="coder",
    )
    job = job_of(node, path=str(program.parent))
    assert job.command.argv[:3] == (str(program), "-m", str(path))
    assert job.command.argv[-3:] == ("--mlock", "-ngl", "9")
    assert job.server_args == ("--mlock", "-ngl", "9")
    assert job.command.environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert job.model_bytes == path.stat().st_size
    told_job = job_of(node, told("coder"), path=str(program.parent))
    assert told_job.command.environment["CUDA_VISIBLE_DEVICES"] == "GPU-1"


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    node = settings(
        model(path=tmp_path / "absent.gguf", args=("--port", "1")),
        llama_server=LlamaServer(args=("--api-key", "x"), origin="/etc/n.yaml:2"),
        runs="coder",
    )
    assert problems(lambda: job_of(node)) == [
        "llama_server.path: no llama-server in PATH; install llama.cpp's server "
        "(Debian: apt install llama.cpp-tools), or set llama_server.path",
        f"/etc/rolemesh/node.d/10.yaml:7: models.coder.path: {tmp_path}/absent.gguf does not exist",
        "/etc/n.yaml:2: llama_server.args: --api-key cannot be given: the socket is private; keys "
        "belong into `auth` of the node's configuration; remove it",
        "/etc/rolemesh/node.d/10.yaml:7: models.coder.args: --port cannot be given: llama-server "
        "listens on a private socket; remove it",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.unlink(), "{path} does not exist; install llama.cpp's server"),
        (lambda path: path.chmod(0o644), "{path} may not be executed by user"),
        (
            lambda path: (path.unlink(), path.mkdir()),
            "{path} is a directory; name the program in it",
        ),
    ],
)
def test_a_program_that_cannot_run_is_named(
    program: Path,
    make_model: Callable[..., Path],
    make: Callable[[Path], object],
    message: str,
) -> None:
    make(program)
    server = LlamaServer(path=program, origin="/etc/n.yaml:2")
    node = settings(model(path=make_model("tiny-a")), llama_server=server, runs="coder")
    (problem,) = problems(lambda: job_of(node))
    expected = message.format(path=program)
    assert problem.startswith(f"/etc/n.yaml:2: llama_server.path: {expected}")


def test_a_model_that_is_none_is_named(program: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.gguf"
    page.write_text("<!doctype html>")
    node = settings(model(path=page), llama_server=LlamaServer(path=program), runs="coder")
    assert problems(lambda: job_of(node)) == [
        f"/etc/rolemesh/node.d/10.yaml:7: models.coder.path: {page}: is not a GGUF model: it is an "
        "HTML page: a failed download"
    ]


def test_a_model_in_parts_is_all_its_parts(program: Path, tmp_path: Path) -> None:
    first, second = (tmp_path / f"big-0000{number}-of-00002.gguf" for number in (1, 2))
    assert model_parts(first) == (first, second)
    assert model_parts(tmp_path / "x.gguf") == (tmp_path / "x.gguf",)
    with pytest.raises(
        ValueError, match=r"00002-of-00002\.gguf is not the first part of its model"
    ):
        model_parts(second)
    first.write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    node = settings(model(path=first), llama_server=LlamaServer(path=program), runs="coder")
    (problem,) = problems(lambda: job_of(node))
    assert problem.endswith(f"{second} does not exist")
    second.write_bytes(b"GGUF\3\0\0\0" + bytes(17))
    assert job_of(node).model_bytes == 49
    node = settings(model(path=second), llama_server=LlamaServer(path=program), runs="coder")
    (problem,) = problems(lambda: job_of(node))
    assert problem.endswith(f"is not the first part of its model; name {first}")
