"""The agent's own key."""

import json
from pathlib import Path

import pytest

from rolemesh.agent.token import load_token


def test_a_token_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    token = load_token(tmp_path)
    assert len(token) >= 32
    assert load_token(tmp_path) == token
    assert (tmp_path / "token.json").stat().st_mode & 0o777 == 0o600


def test_two_agents_have_different_tokens(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert load_token(tmp_path / "a") != load_token(tmp_path / "b")


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"token": "short"}), '{"token": 5}'])
def test_a_token_file_that_makes_no_sense_is_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "token.json").write_text(content)
    token = load_token(tmp_path)
    assert len(token) >= 32
    assert load_token(tmp_path) == token


def test_a_token_that_cannot_be_saved_is_a_token_all_the_same(tmp_path: Path) -> None:
    assert len(load_token(tmp_path / "not" / "there")) >= 32
