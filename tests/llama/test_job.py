"""What an instance runs, and everything that may prevent it."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from rolemesh.config.settings import InstanceSettings, LlamaServer, ModelSettings, NodeSettings
from rolemesh.errors import ConfigError
from rolemesh.llama.build import Builds
from rolemesh.llama.job import Job, choose_model, find_devices, prepare_job
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


def model(name: str = "coder", path: Path = Path("/m.gguf"), **fields: Any) -> ModelSettings:
    return ModelSettings(
        model_id=ModelId(name),
        path=path,
        roles=(Role("coder"),),
        origin="/etc/rolemesh/node.d/10.yaml:7",
        **fields,
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


def job_of(
    node: NodeSettings,
    parameters: Parameters | None = None,
    path: str = "/absent",
    **options: Any,
) -> Job:
    return prepare_job(
        settings=node,
        instance=GPU0,
        parameters=parameters,
        parameters_path=TOLD,
        socket=Path("/run/x/http.sock"),
        environment={"PATH": path},
        **options,
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
        llama_server=LlamaServer(args=("--api-key", "x"), args_origin="/etc/n.yaml:2"),
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


def test_an_instance_without_parameters_has_the_gpus_that_it_is_configured_with() -> None:
    configured = InstanceSettings(name=GPU0, gpus=(0, 2))
    assert find_devices(configured, GPU0, None).numbers == (0, 2)
    assert find_devices(None, InstanceName("gpu3-embed"), None).numbers == (3,)
    assert find_devices(configured, GPU0, told("coder")).uuids == ("GPU-1",)
    assert find_devices(None, InstanceName("cpu0"), told("coder")).count == 0


def test_what_a_job_is_known_by(program: Path, make_model: Callable[..., Path]) -> None:
    path = make_model("tiny-a")

    def job(**fields: Any) -> Job:
        options = {"slot_directory": Path("/cache/slots/gpu0")}
        node = settings(model(path=path, **fields), runs="coder")
        return job_of(node, told("coder"), path=str(program.parent), **options)

    plain = job()
    assert (plain.generation, plain.build.version, plain.slot_directory) == (3, "", None)
    assert plain.args_hash == job().args_hash
    assert job(context_size=7).args_hash != plain.args_hash
    # Of a program that does not say what it is, the file counts.
    program.write_text("#!/bin/sh\n# another\n")
    assert job().args_hash != plain.args_hash
    assert job(save_slots=True).slot_directory == Path("/cache/slots/gpu0")


SAYS = """\
#!{python}
import sys
names = "model FILE", "host H", "port P", "ctx-size N", "n-gpu-layers N", {more}
if sys.argv[1] == "--version":
    print("version: 1.2 (build 3)")
for name in names:
    print(("--" + name).ljust(40) + "allowed values: f16, q8_0" * ("type" in name))
"""


def test_options_that_the_installed_build_lacks_are_refused_where_they_stand(
    program: Path, make_model: Callable[..., Path]
) -> None:
    program.write_text(SAYS.format(python=sys.executable, more="'cache-type-k TYPE',"))
    coder = model(
        path=make_model("tiny-a"),
        args=("--ctx_sise", "5"),
        cache_type_k="q9_0",
        mmproj=make_model("tiny-a"),
        chat_template="chatml",
    )
    node = settings(
        coder,
        llama_server=LlamaServer(path=program, args=("--mlock",), args_origin="/etc/n.yaml:2"),
    )
    build, at = "llama-server 1.2 (build 3)", "/etc/rolemesh/node.d/10.yaml:7: models.coder."
    assert problems(lambda: job_of(node, told("coder"))) == [
        f"{at}mmproj: expected a projector, found a model in {coder.mmproj}",
        f"/etc/n.yaml:2: llama_server.args: {build} does not know --mlock",
        f'{at}cache_type_k: {build} does not know q9_0 for --cache-type-k; did you mean "q8_0"? '
        "(it knows f16, q8_0)",
        f"{at}mmproj: {build} does not know --mmproj",
        f"{at}chat_template: {build} does not know --chat-template",
        f'{at}args: {build} does not know --ctx_sise; did you mean "--ctx-size"?',
    ]


def test_a_remembered_answer_refuses_nothing_without_asking_again(
    program: Path, make_model: Callable[..., Path]
) -> None:
    """The libraries of a program may change without the program itself."""
    more = program.with_name("more")
    says = SAYS.replace(
        "{more}", "*open(sys.argv[0].replace('llama-server', 'more')).read().split()"
    )
    program.write_text(says.format(python=sys.executable))
    more.write_text("")
    node = settings(model(path=make_model("tiny-a"), args=("--mlock",)), runs="coder")
    builds = Builds()

    def job() -> Job:
        return job_of(node, path=str(program.parent), builds=builds)

    (problem,) = problems(job)
    assert problem.endswith("llama-server 1.2 (build 3) does not know --mlock")
    more.write_text("mlock")
    assert job().command.argv[-1] == "--mlock"
