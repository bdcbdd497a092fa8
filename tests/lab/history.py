"""Earlier versions of RoleMesh, taken out of the repository's history and run beside the present one."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


class NoHistory(Exception):
    """There is no git, or no such commit; the text says so."""


def take_out(commit: str, folder: Path) -> Path:
    """Write a commit's packages to a folder, and return it; raises NoHistory."""
    archive = git("archive", "--format=tar", commit, "rolemesh")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(("tar", "-x", "-C", folder), input=archive, check=True)
    return folder


def old_command(sources: Path, module: str) -> tuple[str, ...]:
    """Return how a module of an earlier version is run.

    A program of ours that it runs by `python -m` is of the present version: that looks in the
    folder it runs in first, which is this repository.
    """
    return (
        *("/usr/bin/env", f"--chdir={ROOT}", f"PYTHONPATH={sources}"),
        *(sys.executable, "-P", "-m", module),
    )


def git(*words: str) -> bytes:
    """Return what git prints, asked about this repository; raises NoHistory."""
    try:
        done = subprocess.run(
            # A checkout may belong to somebody else, as in a container.
            ("git", "-c", "safe.directory=*", *words),
            cwd=ROOT,
            check=False,
            capture_output=True,
        )
    except OSError as err:
        msg = f"git cannot be run: {err.strerror}"
        raise NoHistory(msg) from err
    if done.returncode:
        raise NoHistory(done.stderr.decode(errors="replace").strip())
    return done.stdout
