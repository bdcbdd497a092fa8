"""Sockets and parameters of instances."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rolemesh.agent.instance_files import (
    MAX_SOCKET_PATH_BYTES,
    InstanceFiles,
    runtime_directory,
)
from rolemesh.errors import NodeError, StartError
from rolemesh.llama.parameters import Parameters, read_parameters
from rolemesh.names import InstanceName, ModelId, NodeId

GPU0 = InstanceName("gpu0")


def files_in(directory: Path) -> InstanceFiles:
    files = InstanceFiles.below(directory)
    files.prepare()
    return files


def test_what_is_written_is_what_rolemesh_llama_reads(short_path: Path) -> None:
    files = files_in(short_path / "run")
    files.write_parameters(GPU0, ModelId("coder"), ("GPU-1",))
    files.write_parameters(GPU0, ModelId("planner"), ("GPU-1", "GPU-2"))
    assert read_parameters(files.parameters_file(GPU0)) == Parameters(
        model_id=ModelId("planner"), devices=("GPU-1", "GPU-2"), generation=2
    )


def test_the_parameters_say_nothing_about_what_is_executed(short_path: Path) -> None:
    files = files_in(short_path)
    files.write_parameters(GPU0, ModelId("coder"), ())
    tree = json.loads(files.parameters_file(GPU0).read_text())
    assert tree.keys() == {"model_id", "devices", "generation"}


def test_removed_parameters_are_gone_and_may_be_removed_again(short_path: Path) -> None:
    files = files_in(short_path)
    files.write_parameters(GPU0, ModelId("coder"), ())
    files.remove_parameters(GPU0)
    files.remove_parameters(GPU0)
    assert files.read_parameters(GPU0) is None


@pytest.mark.parametrize("content", ["", "[]", '{"model_id": 3}'])
def test_parameters_that_make_no_sense_name_no_model(short_path: Path, content: str) -> None:
    files = files_in(short_path)
    files.parameters_file(GPU0).write_text(content)
    assert files.read_parameters(GPU0) is None


def test_parameters_that_cannot_be_written_are_an_error(short_path: Path) -> None:
    files = InstanceFiles.below(short_path / "absent")
    with pytest.raises(NodeError, match="gpu0 cannot be told what to run"):
        files.write_parameters(GPU0, ModelId("coder"), ())


def test_a_path_too_long_for_sockets_is_refused_with_the_remedy(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * MAX_SOCKET_PATH_BYTES)
    with pytest.raises(StartError, match=r"too long.*ROLEMESH_RUNTIME_DIRECTORY"):
        InstanceFiles.below(directory).prepare()


def test_a_directory_that_cannot_be_made_is_named(short_path: Path) -> None:
    (short_path / "file").write_text("")
    with pytest.raises(StartError, match=r"cannot make .*/file/run"):
        InstanceFiles.below(short_path / "file" / "run").prepare()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "/state/run-box"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/rolemesh-box"),
        ({"ROLEMESH_RUNTIME_DIRECTORY": "/r", "XDG_RUNTIME_DIR": "/run/user/7"}, "/r"),
    ],
)
def test_the_runtime_directory_is(environ: dict[str, str], expected: str) -> None:
    assert runtime_directory(NodeId("box"), Path("/state"), environ) == Path(expected)


def test_units_of_systemd_have_their_files_in_run() -> None:
    files = InstanceFiles.of_systemd()
    assert files.socket(GPU0) == Path("/run/rolemesh-llama/gpu0/http.sock")
    assert files.parameters_file(GPU0) == Path("/run/rolemesh/llama/gpu0.json")


def test_a_directory_that_systemd_has_not_made_is_named_with_the_remedy(
    short_path: Path,
) -> None:
    files = InstanceFiles(
        sockets=short_path / "a", parameters=short_path / "b", made_by_systemd=True
    )
    with pytest.raises(StartError, match="systemd-tmpfiles --create"):
        files.prepare()
    files.parameters.mkdir()
    files.prepare()
    assert not files.sockets.exists()


@pytest.mark.parametrize("environ", [{}, {"XDG_RUNTIME_DIR": "/run/user/7"}])
def test_nodes_with_long_names_have_short_runtime_directories_of_their_own(
    environ: dict[str, str],
) -> None:
    long = "ip-10-0-0-1.eu-west-1.compute.example"
    one, other = (
        runtime_directory(NodeId(name), Path("/state"), environ) for name in (long, f"{long}.org")
    )
    assert one != other
    assert len(one.name) == len(other.name) <= len("rolemesh-") + 24


def test_the_parameters_name_the_agent_whose_configuration_counts(short_path: Path) -> None:
    files = replace(files_in(short_path), config="second")
    files.write_parameters(GPU0, ModelId("coder"), ())
    told = files.read_parameters(GPU0)
    assert told is not None
    assert told.config == "second"
