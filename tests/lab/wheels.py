"""Wheels of all that RoleMesh needs, for the Python of a host that reaches no package index."""

import hashlib
import platform
import re
import shutil
import sys
import tomllib
from pathlib import Path

from tests.lab.cache import cache_folder, locked
from tests.lab.host_root import week
from tests.lab.steps import StepFailed, run_step

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
# pip takes these literally: a wheel for an older C library is not found under a newer one's name.
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux_2_5", "manylinux1")
TIMEOUT_S = 300

SOURCES_ONLY = ("sdnotify",)
"""What the index has no wheels of; plain Python."""


class NoWheels(Exception):
    """They could not be downloaded; the text has the reason."""


def wheels(python_version: str) -> Path:
    """Return a folder with this week's wheels for that Python ("3.13"); raises NoWheels."""
    needed = requirements()
    cache = cache_folder("wheels")
    key = hashlib.sha256(" ".join(needed).encode()).hexdigest()[:8]
    folder = cache / f"{python_version}-{week()}-{key}"
    with locked(cache):
        if not folder.exists():
            for older in cache.glob(f"{python_version}-*"):
                shutil.rmtree(older)
            part = cache / "part"
            shutil.rmtree(part, ignore_errors=True)
            _download(needed, python_version, part)
            part.rename(folder)
    return folder


def requirements() -> list[str]:
    """Return what pyproject.toml names, for building, for running, and for running fast."""
    tree = tomllib.loads(PROJECT.read_text())
    project = tree["project"]
    named = [
        *tree["build-system"]["requires"],
        *project["dependencies"],
        *project["optional-dependencies"]["fast"],
    ]
    return sorted({re.sub(r"\s", "", each) for each in named})


def _download(needed: list[str], python_version: str, folder: Path) -> None:
    platforms = [f"--platform={each}_{platform.machine()}" for each in PLATFORMS]
    for_it = ("--implementation=cp", f"--python-version={python_version}", *platforms)
    pip = (sys.executable, "-m", "pip")
    download = (*pip, "download", "--quiet", "--only-binary=:all:", f"--find-links={folder}")
    try:
        run_step(
            [*pip, "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", *SOURCES_ONLY],
            timeout_s=TIMEOUT_S,
        )
        run_step([*download, *for_it, f"--dest={folder}", *needed], timeout_s=TIMEOUT_S)
    except StepFailed as err:
        raise NoWheels(str(err)) from err
