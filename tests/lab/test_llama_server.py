import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.llama_server import (
    VARIABLE,
    NoLlamaServer,
    debian_repository,
    is_complete,
    llama_server,
    version,
)


def only_these_programs(folder: Path, scripts: dict[str, str], patch: pytest.MonkeyPatch) -> None:
    """Make PATH a folder with nothing but these shell scripts in it."""
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    patch.delenv(VARIABLE, raising=False)
    patch.setenv("PATH", str(folder))
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def test_the_real_one_runs_here(llama_server: Path) -> None:
    assert "version" in version(llama_server)


def test_the_command_prints_the_path(llama_server: Path) -> None:
    command = [sys.executable, "-m", "tests.lab.llama_server"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == f"{llama_server}\n"


def test_one_that_is_named_is_preferred_to_one_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_these_programs(tmp_path / "bin", {"llama-server": "", "mine": ""}, monkeypatch)
    assert llama_server() == tmp_path / "bin" / "llama-server"
    monkeypatch.setenv(VARIABLE, str(tmp_path / "bin" / "mine"))
    assert llama_server() == tmp_path / "bin" / "mine"


def test_one_that_is_named_but_not_there_is_not_replaced_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_these_programs(tmp_path / "bin", {"llama-server": ""}, monkeypatch)
    monkeypatch.setenv(VARIABLE, "/nowhere/llama-server")
    with pytest.raises(NoLlamaServer, match="/nowhere/llama-server: no such program"):
        llama_server()


def test_without_apt_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_these_programs(tmp_path / "bin", {}, monkeypatch)
    with pytest.raises(NoLlamaServer, match=rf"apt-get is missing.*export {VARIABLE}="):
        llama_server()


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("http://one.example/debian/\nhttp://one.example/debian-security/", "one"),
        ("http://one.example/debian-security/\nhttp://two.example/debian", "two"),
        ("https://apt.example/\nhttp://three.example/pub/debian", "three"),
    ],
)
def test_the_archive_is_the_one_the_machine_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, found: str
) -> None:
    only_these_programs(tmp_path / "bin", {"apt-get": f"echo '{listed}'"}, monkeypatch)
    assert debian_repository().startswith(f"http://{found}.example/")


@pytest.mark.parametrize(
    ("apt", "message"),
    [
        ("echo http://archive.example/ubuntu/", "not configured for a Debian archive"),
        (
            '[ "$1" = indextargets ] && echo http://x/debian || { echo no route; exit 100; }',
            "no route",
        ),
    ],
)
def test_a_fetch_that_fails_says_why_and_leaves_nothing_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apt: str, message: str
) -> None:
    only_these_programs(tmp_path / "bin", {"apt-get": apt, "dpkg-deb": ""}, monkeypatch)
    with pytest.raises(NoLlamaServer, match=message):
        llama_server()
    tree = tmp_path / "bin/cache/rolemesh/lab/llama-server"
    assert not is_complete(tree)
    assert not list(tree.glob("apt-*"))


def test_a_tree_that_was_moved_does_not_count_as_fetched(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "llama-server").touch()
    (tmp_path / "fetched.json").write_text('{"path": "/elsewhere"}')
    assert not is_complete(tmp_path)
    (tmp_path / "fetched.json").write_text(f'{{"path": "{os.fspath(tmp_path)}"}}')
    assert is_complete(tmp_path)
