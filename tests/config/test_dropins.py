import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rolemesh.config import tree
from rolemesh.config.dropins import (
    MAX_FILE_BYTES,
    ROOTS,
    ConfigSource,
    Override,
    Reading,
    read_fragments,
)
from tests.config.conftest import Write

NOBODY = 65534


@pytest.fixture
def source(tmp_path: Path) -> ConfigSource:
    """Return the gateway's source with two roots, `low` and `high`."""
    return ConfigSource(program="gateway", roots=(tmp_path / "low", tmp_path / "high"))


def values(reading: Reading) -> list[object]:
    return [tree.plain(fragment) for fragment in reading.fragments]


def problems(reading: Reading, *, are_warnings: bool = False) -> list[str]:
    return [str(f.problem()) for f in reading.findings if f.is_warning is are_warnings]


def test_the_directories_are_those_of_systemd_in_its_order() -> None:
    assert [str(path) for path in ConfigSource(program="node").directories] == [
        "/usr/lib/rolemesh/node.d",
        "/usr/local/lib/rolemesh/node.d",
        "/run/rolemesh/node.d",
        "/etc/rolemesh/node.d",
    ]
    assert str(ROOTS[-1]) == "/etc/rolemesh"


def test_nothing_configured_is_fine(source: ConfigSource) -> None:
    assert read_fragments(source) == Reading(fragments=(), files=(), findings=())


def test_files_are_sorted_by_name_across_all_directories(
    source: ConfigSource, write: Write
) -> None:
    write("high/gateway.d/20-b.yaml", "b: 2")
    write("low/gateway.d/30-c.yaml", "c: 3")
    write("low/gateway.d/10-a.yaml", "a: 1")
    assert values(read_fragments(source)) == [{"a": 1}, {"b": 2}, {"c": 3}]


def test_the_same_name_in_a_higher_directory_replaces_the_lower_file(
    source: ConfigSource, write: Write
) -> None:
    write("low/gateway.d/10-a.yaml", "a: 1\nb: 1")
    high = write("high/gateway.d/10-a.yaml", "a: 2")
    reading = read_fragments(source)
    assert values(reading) == [{"a": 2}]
    assert reading.files == (high,)


def test_an_empty_file_masks(source: ConfigSource, write: Write) -> None:
    write("low/gateway.d/10-a.yaml", "a: 1")
    write("high/gateway.d/10-a.yaml", "")
    assert read_fragments(source) == Reading(fragments=(), files=(), findings=())


def test_a_symlink_to_dev_null_masks(source: ConfigSource, write: Write, tmp_path: Path) -> None:
    write("low/gateway.d/10-a.yaml", "a: 1")
    (tmp_path / "high/gateway.d").mkdir(parents=True)
    (tmp_path / "high/gateway.d/10-a.yaml").symlink_to("/dev/null")
    assert read_fragments(source) == Reading(fragments=(), files=(), findings=())


def test_a_file_of_comments_replaces_the_lower_one_and_says_nothing(
    source: ConfigSource, write: Write
) -> None:
    write("low/gateway.d/10-a.yaml", "a: 1")
    write("high/gateway.d/10-a.yaml", "# nothing\n")
    assert values(read_fragments(source)) == [{}]


def test_a_byte_order_mark_is_no_part_of_the_first_key(source: ConfigSource, write: Write) -> None:
    write("low/gateway.d/10-a.yaml", "\ufeffa: 1")
    assert values(read_fragments(source)) == [{"a": 1}]


@pytest.mark.parametrize("name", [".10-a.yaml.swp", ".#10-a.yaml", "10-a.yaml~", "README"])
def test_leftovers_of_editors_and_readmes_are_passed_over_in_silence(
    source: ConfigSource, write: Write, name: str
) -> None:
    write(f"low/gateway.d/{name}", "a: 1")
    assert read_fragments(source) == Reading(fragments=(), files=(), findings=())


def test_directories_are_not_searched(source: ConfigSource, write: Write, tmp_path: Path) -> None:
    write("low/gateway.d/deeper.yaml/10-a.yaml", "a: 1")
    write("low/gateway.d/other/10-a.yaml", "a: 1")
    write("low/gateway.d/other.conf/10-a.yaml", "a: 1")
    reading = read_fragments(source)
    assert reading.fragments == ()
    assert problems(reading, are_warnings=True) == [
        f"{tmp_path}/low/gateway.d/deeper.yaml: not read: it is a directory"
    ]


@pytest.mark.parametrize("name", ["10-a.yml", "10-a.YAML", "10-a.json", "10-a.conf"])
def test_a_file_with_another_suffix_is_named_with_the_rename_that_helps(
    source: ConfigSource, write: Write, name: str
) -> None:
    path = write(f"low/gateway.d/{name}", "a: 1")
    reading = read_fragments(source)
    assert reading.fragments == ()
    assert problems(reading, are_warnings=True) == [
        f"{path}: not read: its name does not end in .yaml; rename it to 10-a.yaml"
    ]


@pytest.mark.parametrize(
    ("program", "name", "better"),
    [
        ("gateway", "gateway.yaml", "gateway.d/50-gateway.yaml"),
        ("gateway", "models.yml", "gateway.d/50-models.yaml"),
        ("node", "node.yaml", "node.d/50-node.yaml"),
        ("node", "node_agent.yaml", "node.d/50-node_agent.yaml"),
    ],
)
def test_a_single_file_beside_the_directories_is_named_with_the_rename_that_helps(
    write: Write, tmp_path: Path, program: tree.Program, name: str, better: str
) -> None:
    path = write(name, "a: 1")
    source = ConfigSource(program=program, roots=(tmp_path,))
    assert problems(read_fragments(source), are_warnings=True) == [
        f"{path}: not read; rename it to {tmp_path}/{better}, or name it with --config"
    ]


def test_a_config_file_is_read_instead_of_the_directories(
    source: ConfigSource, write: Write, tmp_path: Path
) -> None:
    write("high/gateway.d/10-a.yaml", "a: 1")
    write("high/models.yaml", "a: 1")
    single = write("single.txt", "b: 2")
    only = ConfigSource(program="gateway", config=single, roots=source.roots)
    reading = read_fragments(only)
    assert values(reading) == [{"b": 2}]
    assert reading.findings == ()
    assert only.is_lenient
    assert not source.is_lenient


def test_a_config_directory_replaces_the_search_path(source: ConfigSource, write: Write) -> None:
    write("high/gateway.d/10-a.yaml", "a: 1")
    other = write("other/10-b.yaml", "b: 2").parent
    replaced = ConfigSource(program="gateway", config_dir=other, roots=source.roots)
    assert values(read_fragments(replaced)) == [{"b": 2}]


def test_a_config_directory_that_is_missing_is_a_problem(tmp_path: Path) -> None:
    source = ConfigSource(program="gateway", config_dir=tmp_path / "none")
    assert problems(read_fragments(source)) == [f"{tmp_path}/none: there is no such directory"]


def test_a_search_directory_that_is_no_directory_is_a_problem(
    source: ConfigSource, write: Write
) -> None:
    path = write("low/gateway.d", "a: 1")
    assert problems(read_fragments(source)) == [f"{path}: cannot be read: Not a directory"]


def test_the_override_file_comes_after_the_others_and_options_after_it(
    source: ConfigSource, write: Write
) -> None:
    write("high/gateway.d/99-z.yaml", "a: 1")
    full = ConfigSource(
        program="gateway",
        roots=source.roots,
        override=write("local.yaml", "a: 2"),
        overrides=(Override(origin="--port", path=("listen", "port"), value=81),),
    )
    reading = read_fragments(full)
    assert values(reading) == [{"a": 1}, {"a": 2}, {"listen": {"port": 81}}]
    assert str(reading.fragments[-1].origin) == "--port"


def test_an_empty_or_null_config_file_configures_nothing(write: Write) -> None:
    for path in (write("empty.yaml", ""), Path("/dev/null")):
        assert values(read_fragments(ConfigSource(program="gateway", config=path))) == [{}]


def test_every_file_that_cannot_be_read_is_told(source: ConfigSource, write: Write) -> None:
    directory = write("low/gateway.d/40-list.yaml", "- a\n- b").parent
    (directory / "10-gone.yaml").symlink_to("nowhere")
    (directory / "20-loop.yaml").symlink_to("20-loop.yaml")
    (directory / "30-latin.yaml").write_bytes(b"a: 1\nb: '\xe4'\n")
    (directory / "50-huge.yaml").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    os.mkfifo(directory / "60-pipe.yaml")
    write("low/gateway.d/70-scalar.yaml", "\nhello")
    write("low/gateway.d/80-broken.yaml", "a: b: c")
    reading = read_fragments(source)
    assert reading.fragments == ()
    assert problems(reading) == [
        f"{directory}/10-gone.yaml: cannot be read: No such file or directory",
        f"{directory}/20-loop.yaml: cannot be read: Too many levels of symbolic links",
        f"{directory}/30-latin.yaml:2: expected UTF-8 text, found byte 0xe4",
        f"{directory}/40-list.yaml:1: expected a mapping of settings, found a list",
        f"{directory}/50-huge.yaml: expected at most 1048576 bytes, found more",
        f"{directory}/60-pipe.yaml: expected a file, found something else",
        f'{directory}/70-scalar.yaml:1: expected a mapping of settings, found "hello"',
        f"{directory}/80-broken.yaml:1: not valid YAML: "
        + problems(reading)[-1].partition("not valid YAML: ")[2],
    ]


def test_a_file_that_may_not_be_read_is_told_with_the_user(short_path: Path) -> None:
    path = short_path / "secret.yaml"
    path.write_text("a: 1")
    path.chmod(0)
    short_path.chmod(0o755)
    with unprivileged() as uid:
        found = problems(read_fragments(ConfigSource(program="gateway", config=path)))
    assert found == [f"{path}: cannot be read by uid {uid}: Permission denied"]


@contextmanager
def unprivileged() -> Iterator[int]:
    """Be nobody for a while if we are root, who may read everything; gives the user's id."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(NOBODY)
    try:
        yield os.geteuid()
    finally:
        os.seteuid(was)
