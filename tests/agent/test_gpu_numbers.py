"""The numbers of GPUs over restarts."""

from pathlib import Path

from rolemesh.agent.gpu_numbers import GpuNumbersFile


def test_numbers_are_found_again(tmp_path: Path) -> None:
    GpuNumbersFile(tmp_path).save({"GPU-a": 0, "GPU-b": 3})
    assert GpuNumbersFile(tmp_path).load() == {"GPU-a": 0, "GPU-b": 3}


def test_without_a_file_nothing_is_remembered_and_none_is_made_for_nothing(tmp_path: Path) -> None:
    file = GpuNumbersFile(tmp_path)
    assert file.load() == {}
    file.save({})
    assert list(tmp_path.iterdir()) == []


def test_entries_that_make_no_sense_are_dropped(tmp_path: Path) -> None:
    text = '{"a": 0, "b": "1", "c": -1, "d": 0, "e": true, "f": 2}'
    (tmp_path / "gpus.json").write_text(text)
    assert GpuNumbersFile(tmp_path).load() == {"a": 0, "f": 2}


def test_a_corrupt_file_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "gpus.json").write_text("no json")
    assert GpuNumbersFile(tmp_path).load() == {}
    assert (tmp_path / "gpus.json.corrupt").read_text() == "no json"


def test_numbers_that_cannot_be_saved_are_a_problem_until_they_are(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    file = GpuNumbersFile(directory)
    file.save({"GPU-a": 0})
    assert "gpus.json not saved" in file.problem
    directory.mkdir()
    file.save({"GPU-a": 0})
    assert file.problem == ""
    assert GpuNumbersFile(directory).load() == {"GPU-a": 0}
