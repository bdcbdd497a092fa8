"""Rules about the repository as a whole that no linter checks."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rolemesh

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "rolemesh").rglob("*.py"))
LAB = sorted(path for name in ("lab", "bench") for path in (ROOT / "tests" / name).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))

MODULE_LINES = 350
FUNCTION_LINES = 50

# Tests that mirror no module: of the repository, and of whole paths through several modules.
TESTS_WITHOUT_A_SOURCE = {"tests/test_conftest.py", "tests/test_repository.py"}
FOLDERS_WITHOUT_SOURCES = {"fakes", "flows", "integration", "packaging", "system"}

PROGRAMS = {"rolemesh-gateway", "rolemesh-llama", "rolemesh-node-agent", "rolemeshctl"}

# Imported first, so that each module is charged only with what is its own.
LIBRARIES = ("aiohttp.web", "httptools", "jeepney", "jsonschema", "pynvml", "sdnotify", "yaml")

# Imports each module named on the command line in a fork of its own; prints the failures.
IMPORT_EACH_ALONE = f"""
import importlib, os, sys, traceback, warnings
for library in {LIBRARIES!r}:
    importlib.import_module(library)
for name in sys.argv[1:]:
    if os.fork() == 0:
        warnings.simplefilter("error")
        try:
            importlib.import_module(name)
        except BaseException:
            print(name, traceback.format_exc(), flush=True)
        os._exit(0)
    os.wait()
"""


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    return relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_every_module_can_be_imported_alone_and_without_a_warning() -> None:
    names = [module_name(path) for path in SOURCES if path.name != "__main__.py"]
    command = [sys.executable, "-c", IMPORT_EACH_ALONE, *names]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == ""


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in (*SOURCES, *LAB)}
    assert {path: lines for path, lines in lengths.items() if lines > MODULE_LINES} == {}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_function_is_longer_than_a_screen() -> None:
    lengths = {
        f"{relative(path)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in (*SOURCES, *LAB)
        for node in functions(path)
    }
    assert {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES} == {}


def source_of(test: Path) -> Path:
    """Return the module that a test file is about, by its place and name."""
    name = test.name.removeprefix("test_")
    folder = test.relative_to(ROOT / "tests").parent
    if folder.parts[:1] in {("lab",), ("bench",)}:
        return test.with_name(name)
    return ROOT / "rolemesh" / folder / name


def test_tests_mirror_the_sources() -> None:
    strays = [
        relative(test)
        for test in TESTS
        if relative(test) not in TESTS_WITHOUT_A_SOURCE
        and test.relative_to(ROOT / "tests").parts[0] not in FOLDERS_WITHOUT_SOURCES
        and not source_of(test).exists()
    ]
    assert strays == []


def test_every_folder_of_sources_is_a_package() -> None:
    folders = {path.parent for path in SOURCES}
    assert [relative(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("name", ["CHANGELOG.md", "LICENSE", "README.md"])
def test_the_files_that_people_look_for_are_there(name: str) -> None:
    assert (ROOT / name).read_text().strip()


def test_the_installed_version_is_the_one_of_the_sources() -> None:
    assert importlib.metadata.version("rolemesh") == rolemesh.__version__


def test_every_program_has_its_function() -> None:
    programs = importlib.metadata.distribution("rolemesh").entry_points
    assert {program.name for program in programs} == PROGRAMS
    for program in programs:
        assert callable(program.load())


def text_files() -> Iterator[Path]:
    listed = subprocess.run(
        # A checkout may belong to somebody else, as in a container.
        [
            "git",
            "-c",
            "safe.directory=*",
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "-z",
        ],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            yield path


@pytest.mark.skipif(
    not ((ROOT / ".git").exists() and shutil.which("git")), reason="needs git and a checkout"
)
def test_nothing_is_left_to_do_in_any_file() -> None:
    reminder = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X])\b")
    found = [
        f"{relative(path)}:{number}"
        for path in text_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if reminder.search(line)
    ]
    assert found == []


def test_shell_scripts_can_be_run() -> None:
    scripts = [*ROOT.glob(".ci/*"), *ROOT.glob("tests/*/*.sh")]
    assert scripts
    for script in scripts:
        assert os.access(script, os.X_OK), relative(script)
        subprocess.run(["bash", "-n", script], check=True)
