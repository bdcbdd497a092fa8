import stat
from pathlib import Path

import pytest

from rolemesh.ctl import own_files
from rolemesh.ctl.outcomes import Failed

GROUP = "nogroup-of-this-name"


def test_files_are_written_whole_for_nobody_else_and_never_over_another(tmp_path: Path) -> None:
    file = tmp_path / "key-x.yaml"
    own_files.write(file, "one\n", group=GROUP, is_new=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    with pytest.raises(Failed, match="exists already"):
        own_files.write(file, "two\n", group=GROUP, is_new=True)
    assert file.read_text() == "one\n"
    own_files.write(file, "three\n", group=GROUP, is_new=False)
    assert file.read_text() == "three\n"
    assert list(tmp_path.iterdir()) == [file]
    own_files.remove(file)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_made_once_and_closed_to_others(tmp_path: Path) -> None:
    directory = tmp_path / "rolemesh" / "gateway.d"
    own_files.make_directory(directory, group=GROUP)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750
    directory.chmod(0o700)
    own_files.make_directory(directory, group=GROUP)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_what_was_written_beside_a_file_goes_unless_it_is_moved(tmp_path: Path) -> None:
    file = tmp_path / "key"
    with own_files.written_beside(file, "secret\n", group=GROUP) as beside:
        assert beside.name.startswith(".key.")
        assert (stat.S_IMODE(beside.stat().st_mode), beside.read_text()) == (0o640, "secret\n")
    assert list(tmp_path.iterdir()) == []
    with own_files.written_beside(file, "secret\n", group=GROUP) as beside:
        beside.rename(file)
    assert list(tmp_path.iterdir()) == [file]
