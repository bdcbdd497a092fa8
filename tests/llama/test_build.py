"""What an installed llama-server is asked, and how long the answer is remembered."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rolemesh.llama.build import MAX_ANSWER_BYTES, Builds, cache_directory
from rolemesh.llama.server_options import UNKNOWN_BUILD

ENVIRONMENT = {"PATH": os.environ["PATH"], "LLAMA_ARG_HOST": "x", "CUDA_VISIBLE_DEVICES": "3"}
SAYS = """\
import os, sys
with open({log!r}, "a") as log:
    print(sys.argv[1], os.environ.get("LLAMA_ARG_HOST"), os.environ["CUDA_VISIBLE_DEVICES"], file=log)
if sys.argv[1] == "--version":
    print("version: {version}", file=sys.stderr)
else:
    for name in ("model", "host", "port", "ctx-size"):
        print(f"--{{name}} VALUE".ljust(40) + "what it is")
"""


class Program:
    """A llama-server that notes each time that it is run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "llama-server"
        self._log = folder / "runs"
        self.becomes(SAYS, version="1.0 (build 1)")

    def becomes(self, script: str, **words: str) -> None:
        text = script.format(log=str(self._log), **words) if words else script
        new = self.path.with_suffix(".new")
        new.write_text(f"#!{sys.executable}\n{text}")
        new.chmod(0o755)
        new.replace(self.path)

    @property
    def runs(self) -> list[str]:
        return sorted(self._log.read_text().splitlines()) if self._log.exists() else []


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def test_a_program_is_asked_once_and_without_gpus(program: Program) -> None:
    builds = Builds()
    for _ in range(2):
        build = builds.of(program.path, ENVIRONMENT)
        assert build.name == "llama-server 1.0 (build 1)"
        assert build.option("--ctx-size") is not None
    assert program.runs == ["--help None ", "--version None "]


def test_what_it_said_is_remembered_over_restarts_until_it_changes(
    program: Program, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    for _ in range(2):
        assert Builds(cache).of(program.path, ENVIRONMENT).version == "1.0 (build 1)"
    assert len(program.runs) == 2
    program.becomes(SAYS, version="2.0 (build 2)")
    assert Builds(cache).of(program.path, ENVIRONMENT).version == "2.0 (build 2)"
    assert len(program.runs) == 4


def test_it_can_be_asked_again(program: Program, tmp_path: Path) -> None:
    builds = Builds(tmp_path)
    builds.of(program.path, ENVIRONMENT)
    assert builds.ask_again(program.path, ENVIRONMENT).version == "1.0 (build 1)"
    assert len(program.runs) == 4
    Builds(tmp_path).of(program.path, ENVIRONMENT)
    assert len(program.runs) == 4


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}', "[" * 100_000, None])
def test_a_cache_that_cannot_be_used_is_none(
    program: Program, tmp_path: Path, content: str | None
) -> None:
    cache = tmp_path / "cache"
    Builds(cache).of(program.path, ENVIRONMENT)
    (file,) = cache.iterdir()
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_text(content)
    assert Builds(cache).of(program.path, ENVIRONMENT).version == "1.0 (build 1)"
    assert len(program.runs) == 4


@pytest.mark.parametrize(
    "script",
    [
        "raise SystemExit(1)",
        "pass",
        "import time; time.sleep(60)",
        f"import sys; sys.stdout.write('-' * {MAX_ANSWER_BYTES + 65536})",
        # Its child holds the pipe and outlives it.
        "import os, time\nif os.fork() == 0: time.sleep(60)",
    ],
)
def test_what_says_nothing_usable_forbids_nothing(program: Program, script: str) -> None:
    program.becomes(script)
    assert Builds(timeout_s=0.5).of(program.path, ENVIRONMENT) is UNKNOWN_BUILD


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"\x7fELF\0"),
        lambda path: path.chmod(0o644),
    ],
)
def test_what_cannot_be_run_forbids_nothing(
    program: Program, make: Callable[[Path], object]
) -> None:
    make(program.path)
    assert Builds().of(program.path, ENVIRONMENT) is UNKNOWN_BUILD


def test_caches_are_where_the_service_manager_or_the_user_says() -> None:
    where = {"CACHE_DIRECTORY": "/a:/b", "XDG_CACHE_HOME": "/c", "HOME": "/d"}
    assert cache_directory(where) == Path("/a")
    del where["CACHE_DIRECTORY"]
    assert cache_directory(where) == Path("/c/rolemesh")
    del where["XDG_CACHE_HOME"]
    assert cache_directory(where) == Path("/d/.cache/rolemesh")
    assert cache_directory({}) is None


def test_a_real_llama_server_says_what_it_is(llama_server: Path) -> None:
    build = Builds().of(llama_server, ENVIRONMENT)
    assert build.version
    assert len(build.options) > 200
    for name in ("-ngl", "--lora-scaled", "--sse-ping-interval", "--slot-save-path"):
        assert build.option(name) is not None
