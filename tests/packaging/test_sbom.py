"""The bill of materials: valid, whole, the same each time, and in step with the packages."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

EPOCH = "1795305600"
VERSION = "1.2.3"


def write_sbom(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, tree / "packaging/sbom.py", VERSION],
        env=os.environ | {"SOURCE_DATE_EPOCH": EPOCH},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def text(repository: Path) -> str:
    done = write_sbom(repository)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def document(text: str) -> dict[str, Any]:
    return dict(json.loads(text))


def properties(document: dict[str, Any], name: str) -> set[str]:
    return {
        each["value"]
        for component in document["components"]
        for each in component["properties"]
        if each["name"] == name
    }


def test_it_is_what_cyclonedx_defines(text: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_the_same_tree_gives_the_same_bytes(text: str, repository: Path) -> None:
    assert write_sbom(repository).stdout == text


def test_it_names_the_version_and_its_date(document: dict[str, Any]) -> None:
    assert document["metadata"]["component"]["version"] == VERSION
    assert document["metadata"]["timestamp"] == "2026-11-22T00:00:00Z"


def test_every_module_is_in_it(document: dict[str, Any], repository: Path) -> None:
    listed = {each["name"] for each in document["metadata"]["component"]["components"]}
    modules = {
        str(path.relative_to(repository)) for path in (repository / "rolemesh").rglob("*.py")
    }
    assert modules <= listed
    assert "systemd/rolemesh-gateway.service" in listed
    assert not [name for name in listed if "__pycache__" in name]


def test_every_dependency_is_named_as_debian_does(
    document: dict[str, Any], repository: Path
) -> None:
    control = (repository / "packaging/debian/control").read_text()
    ours = {name.rpartition("/")[2] for name in properties(document, "rolemesh:package:debian")}
    needed = set(re.findall(r"^ (python3-[a-z]+)", control.partition("\n\n")[2], re.MULTILINE))
    assert needed
    assert needed <= ours
    for name in ours - {"python3", "systemd"}:  # every Debian has these
        assert re.search(rf"\b{re.escape(name)}\b", control), name


def test_all_that_is_needed_hangs_on_the_program(document: dict[str, Any]) -> None:
    (graph,) = document["dependencies"]
    assert graph["ref"] == document["metadata"]["component"]["bom-ref"]
    assert set(graph["dependsOn"]) == {each["bom-ref"] for each in document["components"]}


def test_a_dependency_that_nobody_described_is_not_left_out(
    repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "packaging").mkdir()
    shutil.copy(repository / "packaging/sbom.py", tmp_path / "packaging")
    project = (repository / "pyproject.toml").read_text()
    changed = project.replace("dependencies = [", 'dependencies = [\n    "novelty>=1",', 1)
    (tmp_path / "pyproject.toml").write_text(changed)
    done = write_sbom(tmp_path)
    assert done.returncode == 1
    assert "novelty>=1" in done.stderr
