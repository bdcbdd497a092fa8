"""The numbers of GPUs over restarts."""

import json
from pathlib import Path
from typing import Any

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
    sound: dict[str, Any] = {
        "GPU-5d1c2a30-9b7e-4f10-8c55-0e2f6a7b8c9d": 0,
        "MIG-GPU-5d1c2a30-9b7e-4f10-8c55-0e2f6a7b8c9d/7/0": 2,
    }
    senseless = {"GPU-b": "1", "GPU-c": -1, "GPU-d": 0, "GPU-e": True, "x": 5, "GPU-": 6, "": 7}
    (tmp_path / "gpus.json").write_text(json.dumps(sound | senseless))
    assert GpuNumbersFile(tmp_path).load() == sound


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
