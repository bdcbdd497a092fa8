"""Which of several agents' configurations an instance has."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rolemesh.config.dropins import ConfigSource
from rolemesh.config.settings import NodeSettings
from rolemesh.errors import ConfigError
from rolemesh.llama.node_directory import load_settings
from rolemesh.llama.parameters import Parameters
from rolemesh.names import InstanceName, ModelId

GPU1 = InstanceName("gpu1")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has directories of root's")


def configure(etc: Path, directory: str, *instances: str) -> Path:
    """Make an agent's directory; its node_id is the directory's name."""
    (etc / directory).mkdir(mode=0o750, parents=True, exist_ok=True)
    tree = {"node_id": directory, "instances": {name: {} for name in instances}}
    (etc / directory / "10.yaml").write_text(json.dumps(tree))
    return etc / directory


def told(config: str) -> Parameters:
    return Parameters(model_id=ModelId("m"), devices=(), generation=1, config=config)


def load(
    etc: Path,
    parameters: Parameters | None = None,
    *,
    in_unit: bool = False,
    file: Path | None = None,
) -> NodeSettings:
    source = ConfigSource(program="node", roots=(etc,), config=file)
    return load_settings(source, GPU1, parameters, in_unit=in_unit, etc=etc)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


def test_the_agent_says_which(tmp_path: Path) -> None:
    configure(tmp_path, "node.d")
    configure(tmp_path, "node-b.d", "gpu1")
    assert load(tmp_path, told("")).node_id == "node.d"
    assert load(tmp_path, told("b")).node_id == "node-b.d"
    assert "there is no such directory" in refusal(lambda: load(tmp_path, told("c")))


def test_an_option_that_names_a_configuration_decides(tmp_path: Path) -> None:
    file = configure(tmp_path, "node-b.d") / "10.yaml"
    assert load(tmp_path, told("c"), file=file).node_id == "node-b.d"


def test_nobody_told_it_is_the_one_that_has_the_instance(tmp_path: Path) -> None:
    configure(tmp_path, "node.d", "gpu0")
    assert load(tmp_path).node_id == "node.d"
    configure(tmp_path, "node-b.d", "gpu1")
    (tmp_path / "node-Not an agent.d").mkdir()
    (tmp_path / "gateway.d").mkdir()
    assert load(tmp_path).node_id == "node-b.d"
    configure(tmp_path, "node-b.d", "gpu2")
    assert load(tmp_path).node_id == "node.d"


def test_nobody_told_and_two_have_the_instance(tmp_path: Path) -> None:
    places = configure(tmp_path, "node.d", "gpu1"), configure(tmp_path, "node-b.d", "gpu1")
    assert refusal(lambda: load(tmp_path)) == (
        f"instances.gpu1: configured in {places[0]} and in {places[1]}; expected it in one of them"
    )


def test_a_refused_configuration_of_another_agent_is_no_matter(tmp_path: Path) -> None:
    configure(tmp_path, "node.d", "gpu1")
    (configure(tmp_path, "node-b.d") / "20.yaml").write_text("gpus: many")
    assert load(tmp_path).node_id == "node.d"
    configure(tmp_path, "node.d")
    assert "20.yaml:1: gpus: " in refusal(lambda: load(tmp_path))


@as_root
@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda path: os.chown(path, 12345, -1), "belongs to uid 12345, expected root"),
        (lambda path: path.chmod(0o757), "can be written by others than root"),
        (lambda path: path.chmod(0o770), "can be written by others than root"),
    ],
)
def test_a_unit_takes_nothing_from_what_others_can_write(
    tmp_path: Path, spoil: Callable[[Path], None], fault: str
) -> None:
    configure(tmp_path, "node.d")
    directory = configure(tmp_path, "node-b.d", "gpu1")
    spoil(directory)
    expected = (
        f"{directory}: {fault}: what llama-server runs is read from here; chown it to root, and "
        "chmod go-w"
    )
    for parameters in (told("b"), None):
        assert refusal(lambda said=parameters: load(tmp_path, said, in_unit=True)) == expected  # type: ignore[misc]
    assert load(tmp_path, told("b")).node_id == "node-b.d"
    assert load(tmp_path, told(""), in_unit=True).node_id == "node.d"
