"""Packages of an earlier version of RoleMesh, built from this checkout's history."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import rolemesh
from tests.lab.cache import cache_folder, locked
from tests.lab.history import NoHistory, git
from tests.lab.host import CLEAN_ENVIRONMENT

VERSION_FILE = "rolemesh/__init__.py"


def earlier_packages() -> Path:
    """Return a folder with the packages of the last commit that had another version.

    What a commit gives is built once. Raises NoHistory.
    """
    commit = last_commit_of_another_version()
    cache = cache_folder("packages")
    folder = cache / commit
    with locked(cache):
        if not folder.exists():
            _build(commit, folder)
    return folder


def last_commit_of_another_version() -> str:
    """Return the newest ancestor of what is checked out that has another version than it has now."""
    for commit in _candidates():
        source = git("show", f"{commit}:{VERSION_FILE}").decode()
        match = re.search(r'^__version__\b.*"(.+)"', source, re.MULTILINE)
        if match and match[1] != rolemesh.__version__:
            return commit
    msg = f"all of this checkout's history has version {rolemesh.__version__}"
    raise NoHistory(msg)


def _candidates() -> Iterator[str]:
    """Yield the commits after which the version may have changed, the newest first."""
    yield git("rev-parse", "HEAD").decode().strip()
    for changed in git("rev-list", "HEAD", "--", VERSION_FILE).decode().split():
        _, *parents = git("rev-list", "--parents", "--max-count=1", changed).decode().split()
        yield from parents


def _build(commit: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="rolemesh-earlier-") as checkout:
        archive = git("archive", "--format=tar", commit)
        subprocess.run(["tar", "-x", "-C", checkout], input=archive, check=True)
        built = subprocess.run(
            [Path(checkout, "packaging", "build.sh")],
            env=CLEAN_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert built.returncode == 0, built.stdout
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for package in Path(checkout, "dist").glob("*.deb"):
            shutil.copy2(package, part)
        part.chmod(0o755)
        part.rename(folder)
