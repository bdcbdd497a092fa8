from pathlib import Path

import pytest

from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import load_gateway, load_node
from rolemesh.ctl.staging import judge
from rolemesh.errors import ConfigError, Problem


def problems_with(source: ConfigSource, file: Path, text: str | None) -> tuple[Problem, ...]:
    try:
        judge(source, file, text, load_gateway)
    except ConfigError as error:
        return error.problems
    return ()


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, ...]:
    """Return roots with a vendor's file, and one in /etc that masks another."""
    roots = (tmp_path / "lib", tmp_path / "none", tmp_path / "etc")
    for name, text in {
        "lib/gateway.d/10-a.yaml": "auth: {clients: {ci: {key: one}}}\n",
        "lib/gateway.d/20-b.yaml": "nonsense: 1\n",
        "etc/gateway.d/30-c.yaml": "listen: {port: 9000}\n",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (roots[2] / "gateway.d" / "20-b.yaml").symlink_to("/dev/null")
    return roots


def test_a_file_is_judged_among_the_others_in_its_place(roots: tuple[Path, ...]) -> None:
    source = ConfigSource(program="gateway", roots=roots)
    file = roots[2] / "gateway.d" / "40-d.yaml"
    assert problems_with(source, file, "auth: {clients: {x: {key: two}}}\n") == ()
    (problem,) = problems_with(source, file, "auth: {clients: {x: {key: one}}}\n")
    assert problem.where == f"{file}:1"
    assert problem.message == "expected a key of its own, found the one of auth.clients.ci"
    assert not file.exists()


def test_a_file_is_judged_gone(roots: tuple[Path, ...]) -> None:
    source = ConfigSource(program="gateway", roots=roots)
    mask = roots[2] / "gateway.d" / "20-b.yaml"
    (problem,) = problems_with(source, mask, None)
    assert problem.where == f"{roots[0]}/gateway.d/20-b.yaml:1"
    assert mask.is_symlink()


def test_messages_name_the_files_in_their_places(roots: tuple[Path, ...]) -> None:
    source = ConfigSource(program="gateway", roots=roots)
    file = roots[2] / "gateway.d" / "40-d.yaml"
    (problem,) = problems_with(source, file, "listen: {port: high}\n")
    assert problem.message.endswith(f"(was 9000 from {roots[2]}/gateway.d/30-c.yaml:1)")


def test_one_directory_of_ones_own_is_judged_too(roots: tuple[Path, ...]) -> None:
    folder = roots[2] / "gateway.d"
    source = ConfigSource(program="gateway", config_dir=folder)
    assert problems_with(source, folder / "x.yaml", "listen: {port: 1}\n") == ()
    assert problems_with(source, folder / "x.yaml", "lisen: 1\n") != ()


def test_the_configuration_as_it_would_be_is_returned(tmp_path: Path) -> None:
    source = ConfigSource(program="node", config_dir=tmp_path)
    loaded = judge(source, tmp_path / "10-a.yaml", "node_id: gpubox\n", load_node)
    assert loaded.settings.node_id == "gpubox"
    assert list(tmp_path.iterdir()) == []
