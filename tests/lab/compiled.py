"""RoleMesh with its hot path compiled, as packaging/build-wheel.sh makes it, for tests and benchmark.

python -m tests.lab.compiled: makes it if need be, and prints the folder to put in PYTHONPATH.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.lab.cache import cache_folder, locked

ROOT = Path(__file__).parents[2]
BUILD_TIMEOUT_S = 900
KEPT = 3  # builds of other states of the code


class NotCompiled(Exception):
    """The wheel could not be built; the text has the reason."""


def compiled_folder() -> Path:
    """Return a folder with the package of this checkout, compiled for this Python.

    Raises NotCompiled.
    """
    cache = cache_folder("compiled")
    folder = cache / _digest()
    with locked(cache):
        if not folder.exists():
            _build(folder)
            others = [each for each in cache.iterdir() if each.is_dir() and each != folder]
            for old in sorted(others, key=lambda each: each.stat().st_mtime)[:-KEPT]:
                shutil.rmtree(old)
    return folder


def _digest() -> str:
    """Return what stands for all that the build reads."""
    packaging = [
        ROOT / "packaging" / name for name in ("build-wheel.sh", "tree.sh", "wheel/setup.py")
    ]
    sources = [*(ROOT / "rolemesh").rglob("*.py"), *packaging, ROOT / "pyproject.toml"]
    digest = hashlib.sha256(sys.version.encode())
    for source in sorted(sources):
        digest.update(bytes(source.relative_to(ROOT)) + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _build(folder: Path) -> None:
    print(f"Compiling RoleMesh's hot path into {folder}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="rolemesh-wheel-", dir=folder.parent) as work:
        done = subprocess.run(
            [ROOT / "packaging" / "build-wheel.sh", work],
            env={**os.environ, "PYTHON": sys.executable},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
            msg = f"the wheel could not be built:\n{tail}"
            raise NotCompiled(msg)
        (wheel,) = Path(work).glob("*.whl")
        unpacked = Path(work, "unpacked")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        unpacked.rename(folder)


if __name__ == "__main__":
    print(compiled_folder())
