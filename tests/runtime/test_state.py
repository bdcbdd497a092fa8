import json
import os
import stat
from pathlib import Path

import pytest

from rolemesh.errors import ConfigError
from rolemesh.runtime.state import StateFile, require_directory


def test_what_was_saved_is_loaded_again(tmp_path: Path) -> None:
    StateFile(tmp_path / "a.json").save({"x": ["\ud800", 1.5, None]})
    assert StateFile(tmp_path / "a.json").load() == {"x": ["\ud800", 1.5, None]}


def test_nothing_saved_is_nothing_loaded(tmp_path: Path) -> None:
    assert StateFile(tmp_path / "a.json").load() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_the_file_has_its_mode_whatever_the_umask_is(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        StateFile(tmp_path / "a.json", mode=mode).save({})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == mode


def test_saving_replaces_the_file_and_leaves_no_other(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "a.json")
    file.save([1])
    with (tmp_path / "a.json").open() as reader:
        file.save([2])
        assert reader.read() == "[1]"  # who reads meanwhile sees the old one whole
    assert json.loads((tmp_path / "a.json").read_text()) == [2]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b'{"a": 1} {}', b"[" * 100_000], ids=lambda text: text[:9]
)
def test_a_file_that_cannot_be_understood_is_set_aside(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    file = StateFile(path)
    assert file.load() is None
    assert [each.name for each in tmp_path.iterdir()] == ["a.json.corrupt"]
    assert (tmp_path / "a.json.corrupt").read_bytes() == content
    assert "a.json.corrupt" in caplog.text
    file.save({})
    assert file.load() == {}


def test_a_file_that_cannot_be_read_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.json").mkdir()
    assert StateFile(tmp_path / "a.json").load() is None
    assert "cannot read" in caplog.text
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_what_cannot_be_saved_is_said_once_until_it_can_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "state"
    file = StateFile(folder / "a.json")
    for _ in range(3):
        file.save({})
        assert file.problem.startswith("a.json not saved since ")
        assert "No such file or directory" in file.problem
    assert len(caplog.records) == 1
    folder.mkdir()
    file.save({})
    assert file.problem == ""


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    file = StateFile(tmp_path / "a.json")
    file.save({})
    assert "a.json not saved" in file.problem
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_a_state_directory_is_made_if_need_be(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert require_directory(folder) == folder
    assert stat.S_IMODE(folder.stat().st_mode) & 0o027 == 0
    assert list(folder.iterdir()) == []


def test_a_state_directory_that_cannot_be_used_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as refused:
        require_directory(tmp_path / "file" / "state")
    message = str(refused.value)
    for part in (str(tmp_path / "file" / "state"), "Not a directory", "--state-dir"):
        assert part in message
