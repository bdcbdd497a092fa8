import json
from pathlib import Path

import pytest

from rolemesh.ctl import model_files
from rolemesh.ctl.model_files import ModelEntry
from tests.ctl.conftest import Ctl

ENTRY = ModelEntry(model_id="tiny", path=Path("/srv/tiny.gguf"), roles=("coder",), pin="gpu0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "10-a.yaml").write_text("models: {mine: {path: /m.gguf, roles: [x]}}\n")
    (tmp_path / ENTRY.file_name).write_text(model_files.render(ENTRY))
    return tmp_path


@pytest.fixture
def remove(ctl: Ctl, folder: Path) -> Ctl:
    return lambda *words: ctl("model", "remove", *words, "--directory", folder)


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_what_add_wrote_is_removed_once(remove: Ctl, folder: Path) -> None:
    done = remove("tiny")
    assert (done.status, names(folder)) == (0, ["10-a.yaml"])
    assert done.out == f"tiny removed: {folder}/60-tiny.yaml; its weights stay where they are\n"
    assert remove("tiny").status == 4


def test_for_programs(remove: Ctl, folder: Path) -> None:
    told = json.loads(remove("tiny", "--json").out)
    assert told == {"model_id": "tiny", "file": f"{folder}/60-tiny.yaml"}


def test_what_somebody_wrote_or_edited_is_theirs(remove: Ctl, folder: Path) -> None:
    done = remove("mine")
    assert done.status == 1
    assert f"mine stands at {folder}/10-a.yaml:1, which `model add` did not write" in done.err
    with (folder / ENTRY.file_name).open("a") as file:
        file.write("# and more\n")
    assert remove("tiny").status == 1
    assert names(folder) == ["10-a.yaml", ENTRY.file_name]


def test_a_model_that_others_name_is_not_removed(remove: Ctl, folder: Path) -> None:
    (folder / "70-b.yaml").write_text("instances: {gpu1: {model: tiny}}\n")
    done = remove("tiny")
    assert (done.status, names(folder)) == (78, ["10-a.yaml", ENTRY.file_name, "70-b.yaml"])
    assert f"{folder}/70-b.yaml:1: instances.gpu1.model" in done.err
