#!/usr/bin/python3
"""python_files.py SITELIB PYTHON NAME: lines for %files, of what lies in SITELIB of the build root.

NAME is the package (and distribution) that was installed there for PYTHON, such as 3.14. What that
Python will compile there is made, empty, and listed as ghosts: it does not come with the package,
but goes with it.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path


def make_placeholders(package: Path, python: str) -> None:
    """Make what compileall would."""
    tag = f"cpython-{python.replace('.', '')}"
    for source in sorted(package.rglob("*.py")):
        cache = source.parent / "__pycache__"
        cache.mkdir(exist_ok=True)
        (cache / f"{source.stem}.{tag}.pyc").touch()


def lines(root: Path, top: Path) -> Iterator[str]:
    """Yield a line for each directory and file."""
    for path in (top, *sorted(top.rglob("*"))):
        place = f"/{path.relative_to(root)}"
        if path.is_dir():
            yield f"%dir {place}"
        elif path.suffix == ".pyc":
            yield f"%ghost {place}"
        elif path.name == "LICENSE":
            yield f"%license {place}"
        else:
            yield place


def main(sitelib: str, python: str, name: str) -> None:
    """Print the lines."""
    root = Path(os.environ["RPM_BUILD_ROOT"])
    folder = root / sitelib.lstrip("/")
    make_placeholders(folder / name, python)
    (metadata,) = folder.glob(f"{name}-*.dist-info")
    for top in (folder / name, metadata):
        sys.stdout.writelines(f"{line}\n" for line in lines(root, top))


if __name__ == "__main__":
    main(*sys.argv[1:])
