"""What is said of a running llama-server, and what is no such thing."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rolemesh.llama.server_facts import MAX_BYTES, NoFacts, ServerFacts, read_facts, write_facts
from rolemesh.names import ModelId

FACTS = ServerFacts(
    version="0.1.0",
    server_pid=4711,
    model_id=ModelId("coder"),
    generation=3,
    args_hash="0123456789abcdef",
    build="0.7.0 (build 11669)",
    program="/usr/bin/llama-server",
    signature=(1, 2, 3, 4),
)


def test_facts_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    assert isinstance(read_facts(path), NoFacts)
    write_facts(path, FACTS)
    assert read_facts(path) == FACTS
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_newer_version_adds_is_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    path.write_text(json.dumps({"format": 1, "more": [], **asdict(FACTS)}))
    assert read_facts(path) == FACTS


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 10_000,
        json.dumps({"format": 2, **asdict(FACTS)}),
        json.dumps({"format": 1, **asdict(FACTS), "server_pid": "4711"}),
        json.dumps({"format": 1, **asdict(FACTS), "server_pid": True}),
        json.dumps({"format": 1, **asdict(FACTS), "build": None}),
        json.dumps({"format": 1, **asdict(FACTS), "build": "x" * MAX_BYTES}),
    ],
)
def test_anything_else_says_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "server.json"
    path.write_text(content)
    found = read_facts(path)
    assert isinstance(found, NoFacts)
    assert str(path) in found.reason


def test_a_signature_of_another_kind_is_none(tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    path.write_text(json.dumps({"format": 1, **asdict(FACTS), "signature": "sha256:00"}))
    assert read_facts(path) == replace(FACTS, signature=())


def test_a_newer_format_is_not_guessed_at_but_says_who_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    path.write_text(json.dumps({"format": 2, "version": "9.1.0", "server": {"pid": 4711}}))
    assert read_facts(path) == NoFacts(
        reason=f"{path} has format 2, and this program knows format 1", version="9.1.0"
    )


def test_an_absent_file_is_that_of_a_program_older_than_it(tmp_path: Path) -> None:
    found = read_facts(tmp_path / "server.json")
    assert isinstance(found, NoFacts)
    assert "is older than that file" in found.reason


def test_what_is_no_file_says_nothing(tmp_path: Path) -> None:
    assert isinstance(read_facts(tmp_path), NoFacts)
