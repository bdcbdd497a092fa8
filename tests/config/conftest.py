"""What the configuration tests share: files, trees, and the problems of a source as text."""

import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rolemesh.config.tree import Node
from rolemesh.config.yamlread import read_yaml

Write = Callable[[str, str], Path]
Parse = Callable[..., Node]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file below the test's directory: write("gateway.d/10-a.yaml", text)."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
        return path

    return write


@pytest.fixture
def parse() -> Parse:
    """Return the tree in a text, as read from FILE (default: f.yaml)."""

    def parse(text: str, file: str = "f.yaml") -> Node:
        root = read_yaml(textwrap.dedent(text).lstrip("\n"), file)
        assert root is not None
        return root

    return parse


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Return a directory that every user of the machine can enter (tmp_path is private)."""
    directory = Path(tempfile.mkdtemp(prefix="rm-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)
