"""What operators said of instances outlives the agent."""

from pathlib import Path

import pytest

from rolemesh.agent.operator_choices import OperatorChoices
from rolemesh.names import InstanceName

GPU0, GPU1 = InstanceName("gpu0"), InstanceName("gpu1")


def test_what_was_said_is_remembered(tmp_path: Path) -> None:
    choices = OperatorChoices(tmp_path)
    assert (choices.pinned(GPU0), choices.is_drained(GPU0)) == (None, False)
    choices.pin(GPU0, pinned=True)
    choices.pin(GPU1, pinned=False)
    choices.drain(GPU1, drained=True)
    again = OperatorChoices(tmp_path)
    assert (again.pinned(GPU0), again.pinned(GPU1)) == (True, False)
    assert (again.is_drained(GPU0), again.is_drained(GPU1)) == (False, True)
    again.drain(GPU1, drained=False)
    assert not OperatorChoices(tmp_path).is_drained(GPU1)


@pytest.mark.parametrize("text", ["", "[]", '{"pinned": 3}', '{"pinned": {"gpu0": "yes"}}'])
def test_a_file_that_makes_no_sense_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "choices.json").write_text(text)
    choices = OperatorChoices(tmp_path)
    assert (choices.pinned(GPU0), choices.is_drained(GPU0)) == (None, False)


def test_without_a_place_for_it_it_is_said(tmp_path: Path) -> None:
    choices = OperatorChoices(tmp_path / "absent")
    choices.pin(GPU0, pinned=True)
    assert choices.pinned(GPU0) is True
    assert "choices.json not saved" in choices.problem
