"""What the agent may tell an instance, and what is refused."""

import os
from pathlib import Path

import pytest

from rolemesh.errors import ConfigError
from rolemesh.llama.parameters import MAX_BYTES, Parameters, peek_parameters, read_parameters
from rolemesh.names import ModelId


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_parameters(path)
    (problem,) = caught.value.problems
    assert problem.where == str(path)
    return problem.message


def test_what_the_agent_wrote_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gpu0.json"
    path.write_text('{"model_id": "coder", "devices": ["GPU-1b", "MIG-2c"], "generation": 7}')
    assert read_parameters(path) == Parameters(
        model_id=ModelId("coder"), devices=("GPU-1b", "MIG-2c"), generation=7
    )


def test_devices_may_have_names_and_agents_too(tmp_path: Path) -> None:
    path = tmp_path / "gpu0.json"
    path.write_text(
        '{"model_id": "m", "devices": ["Vulkan0", "RPC[10.0.0.2:50052]"], "config": "b"}'
    )
    found = read_parameters(path)
    assert found is not None
    assert (found.devices, found.config) == (("Vulkan0", "RPC[10.0.0.2:50052]"), "b")


def test_an_absent_file_is_nothing_told(tmp_path: Path) -> None:
    assert read_parameters(tmp_path / "gpu0.json") is None


REMEDY = "; remove the file, or have the agent write it anew"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON: Expecting value: line 1 column 1 (char 0)" + REMEDY),
        ("[" * 100_000, f"is larger than {MAX_BYTES} bytes" + REMEDY),
        ("[" * 60_000, "is not JSON"),
        ("[]", "expected a JSON object, found list" + REMEDY),
        ('{"devices": []}', "model_id: expected a string, found nothing" + REMEDY),
        ('{"model_id": 1, "devices": []}', "model_id: expected a string, found int" + REMEDY),
        ('{"model_id": "a"}', "devices: expected a list of strings, found nothing" + REMEDY),
        ('{"model_id": "a", "devices": [0]}', "devices: expected a list of strings, found int in"),
        (
            '{"model_id": "a", "devices": ["GPU-1,GPU-2"]}',
            "devices: expected UUIDs of GPUs or names of devices, found 'GPU-1,GPU-2'" + REMEDY,
        ),
        (
            '{"model_id": "a", "devices": ["GPU-1", "Vulkan0"]}',
            "devices: expected either UUIDs of GPUs or names of devices, found both" + REMEDY,
        ),
        (
            '{"model_id": "a", "devices": [], "config": "../b"}',
            "config: expected the name of an agent (a-z, 0-9, -), found '../b'" + REMEDY,
        ),
        (
            '{"model_id": "a", "devices": [], "path": "/bin/sh"}',
            "path: unknown key (known: config, devices, format, generation, model_id)" + REMEDY,
        ),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "gpu0.json"
    path.write_text(content)
    assert refusal(path).startswith(message)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    assert refusal(tmp_path / "pipe.json").startswith("is not a regular file")
    (tmp_path / "loop.json").symlink_to("loop.json")
    assert refusal(tmp_path / "loop.json") == "cannot be read: Too many levels of symbolic links"


RECORDED = '{"model_id": "coder", "devices": ["GPU-1b"], "generation": 7, "config": "second"}'
"""What the agent of version 0.1.0 writes; format 1."""


def test_what_earlier_agents_write_is_read_for_good(tmp_path: Path) -> None:
    path = tmp_path / "gpu0.json"
    path.write_text(RECORDED)
    told = Parameters(model_id=ModelId("coder"), devices=("GPU-1b",), generation=7, config="second")
    assert read_parameters(path) == peek_parameters(path) == told
    path.write_text(RECORDED.replace("{", '{"format": 1, '))
    assert read_parameters(path) == peek_parameters(path) == told


def test_a_newer_format_is_refused_by_who_would_act_upon_it_and_nothing_to_who_only_looks(
    tmp_path: Path,
) -> None:
    path = tmp_path / "gpu0.json"
    path.write_text(RECORDED.replace("{", '{"format": 2, '))
    assert refusal(path).startswith("format: this rolemesh-llama knows format 1, found 2; remove")
    assert peek_parameters(path) is None


def test_a_newer_key_is_refused_by_who_would_act_upon_it_and_no_matter_to_who_only_looks(
    tmp_path: Path,
) -> None:
    path = tmp_path / "gpu0.json"
    path.write_text(RECORDED.replace("{", '{"hosts": ["b"], '))
    assert refusal(path).startswith("hosts: unknown key")
    told = peek_parameters(path)
    assert told is not None
    assert told.model_id == "coder"
