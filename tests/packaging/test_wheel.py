"""The wheel with a compiled hot path: what is in it, and that it does what the sources do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.compiled import compiled_folder

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 900

TESTS = ("tests/flows", "tests/agent/test_inference.py", "tests/relay/test_collect.py")
# Tests that bring classes of their own which inherit from ours.
OF_SOURCES_ONLY = ("tests/flows/test_tls_connections.py",)

INHERITANCE = """
import importlib, inspect, pkgutil, sys, rolemesh

def is_compiled(name):
    return sys.modules[name].__file__.endswith(".so")

for found in pkgutil.walk_packages(rolemesh.__path__, "rolemesh."):
    if not found.name.endswith("__main__"):
        module = importlib.import_module(found.name)
        for each in vars(module).values():
            if inspect.isclass(each) and each.__module__ == found.name and not is_compiled(found.name):
                bases = [base for base in each.__mro__[1:] if base.__module__.startswith("rolemesh")]
                if any(is_compiled(base.__module__) for base in bases):
                    print(each)
"""

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(TIMEOUT_S)]


@pytest.fixture(scope="module")
def compiled() -> Path:
    return compiled_folder()


def run_python(script: str, packages: Path) -> str:
    """Run a script with these packages; returns its output."""
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(packages)},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_hot_path_is_compiled_and_its_sources_come_along(compiled: Path) -> None:
    script = "import rolemesh.gateway.inference as module; print(module.__file__)"
    module = Path(run_python(script, compiled).strip())
    assert module.suffix == ".so"
    assert module.is_relative_to(compiled)
    ours = {path.relative_to(ROOT) for path in (ROOT / "rolemesh").rglob("*.py")}
    assert {path.relative_to(compiled) for path in (compiled / "rolemesh").rglob("*.py")} == ours


def test_no_class_that_is_not_compiled_inherits_from_one_that_is(compiled: Path) -> None:
    """Such a class can be made, and fails only when it is used."""
    assert run_python(INHERITANCE, compiled) == ""


def test_nothing_tells_where_it_was_built(compiled: Path) -> None:
    for library in compiled.rglob("*.so"):
        assert b"/tmp/" not in library.read_bytes(), library


def test_compiled_daemons_pass_the_tests_of_the_sources(compiled: Path, tmp_path: Path) -> None:
    """What is tested over real connections: relaying, limits, hygiene, restarts, failures."""
    shutil.copytree(compiled, tmp_path, dirs_exist_ok=True)
    for name in ("tests", "docs", "etc", "packaging", "systemd"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    ignored = [f"--ignore={name}" for name in OF_SOURCES_ONLY]
    arguments = ["-q", "-m", "not llama", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, *ignored],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, "\n".join(done.stdout.splitlines()[-100:])
