"""One agent to a directory."""

import os
from pathlib import Path

import pytest

from rolemesh.agent.directory_lock import hold_directory
from rolemesh.errors import StartError


def hold(directory: Path) -> None:
    with hold_directory(directory, name="lock", remedy="take another"):
        pass


def test_a_held_directory_is_refused_with_its_holder_and_the_remedy(tmp_path: Path) -> None:
    said = rf"the agent with pid {os.getpid()} uses {tmp_path} already .*; take another"
    with (
        hold_directory(tmp_path, name="lock", remedy="take another"),
        pytest.raises(StartError, match=said),
    ):
        hold(tmp_path)


def test_what_was_let_go_may_be_held_again(tmp_path: Path) -> None:
    hold(tmp_path)
    hold(tmp_path)


def test_what_an_earlier_holder_wrote_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("the pid of somebody long gone: 1234567890\n")
    hold(tmp_path)
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_lock_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"cannot open .*/absent/lock: No such file.*another"):
        hold(tmp_path / "absent")


def test_another_process_of_the_same_agent_goes_on_with_its_lock(tmp_path: Path) -> None:
    with hold_directory(tmp_path, name="lock", remedy="") as fd:
        shared = os.dup(fd)
    with hold_directory(tmp_path, name="lock", remedy="", inherited=shared) as own:
        assert own == shared
        with pytest.raises(StartError, match="uses"):
            hold(tmp_path)
    hold(tmp_path)
