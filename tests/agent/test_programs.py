"""What a start would run, and whether that is what runs."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import rolemesh
from rolemesh.agent.programs import Programs
from rolemesh.llama.build import Builds, file_signature
from rolemesh.llama.server_facts import ServerFacts
from rolemesh.names import ModelId

SAYS = f"""#!{sys.executable}
import sys
if sys.argv[1] == "--version":
    print("version: VERSION")
else:
    for name in ("model", "host", "port", "ctx-size"):
        print(f"--{{name}} VALUE".ljust(40) + "what it is")
"""


class Disk:
    """A host with a llama-server, and what one said of itself that was started from it."""

    def __init__(self, folder: Path) -> None:
        self.program = folder / "llama-server"
        self.builds = Builds()
        self.install("0.7.0 (build 11669)")
        signature = file_signature(self.program)
        assert signature is not None
        self.facts = ServerFacts(
            version="0.1.0",
            server_pid=1,
            model_id=ModelId("a"),
            generation=1,
            args_hash="x",
            build="0.7.0 (build 11669)",
            program=str(self.program),
            signature=signature,
        )
        self.of_older_program = replace(self.facts, program="", signature=())

    def install(self, version: str) -> None:
        new = self.program.with_suffix(".new")
        new.write_text(SAYS.replace("VERSION", version))
        new.chmod(0o755)
        new.replace(self.program)

    def look(self) -> Programs:
        self.builds.of(self.program, {})
        return Programs.now(self.program, self.builds)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_what_is_installed_is_told(disk: Disk) -> None:
    assert disk.look().to_json() == {
        "installed_version": rolemesh.__version__,
        "program_replaced": False,
        "llama_server": str(disk.program),
        "installed_build": "0.7.0 (build 11669)",
    }


def test_nothing_is_asked_only_to_tell(disk: Disk) -> None:
    assert Programs.now(disk.program, disk.builds).build == ""
    nowhere = Programs.now(None, disk.builds)
    assert (nowhere.llama_server, nowhere.to_json()["llama_server"]) == (None, None)
    assert nowhere.differ_from(disk.facts) is None


def test_what_was_not_replaced_is_no_other_program(disk: Disk) -> None:
    assert disk.look().differ_from(disk.facts) is False
    assert disk.look().differ_from(disk.of_older_program) is False


def test_another_build_is_another_program(disk: Disk) -> None:
    disk.install("0.8.0 (build 12001)")
    assert disk.look().differ_from(disk.facts) is True
    assert disk.look().differ_from(disk.of_older_program) is True


def test_another_file_of_the_same_build_is_another_program_where_that_can_be_told(
    disk: Disk,
) -> None:
    disk.install("0.7.0 (build 11669)")
    assert disk.look().differ_from(disk.facts) is True
    assert disk.look().differ_from(disk.of_older_program) is False


def test_another_place_is_another_program(disk: Disk, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copy2(disk.program, elsewhere)
    assert Programs.now(elsewhere, disk.builds).differ_from(disk.facts) is True


def test_where_there_is_no_program_any_more_nothing_is_known(disk: Disk) -> None:
    disk.program.unlink()
    assert disk.look().differ_from(disk.facts) is None
