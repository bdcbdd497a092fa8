"""CHANGELOG.md as Debian and RPM want it."""

import datetime as dt
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rolemesh

CHANGELOG = """\
# Changelog

What users notice.

## Unreleased

### Added

- Not of a package yet.

## 0.3.0 (2026-11-23)

### Added

- Something that is 100% new, and is told in a line so long that it has to be broken
  somewhere in the middle.
- `another`: thing.

### Fixed

- A mistake.

## 0.2.0 (2026-11-22)

### Added

- The first.
"""
DEBIAN = """\
rolemesh (0.3.0-1) unstable; urgency=medium

  * Added:
    - Something that is 100% new, and is told in a line so long that it has to
      be broken somewhere in the middle.
    - `another`: thing.
  * Fixed:
    - A mistake.

 -- RoleMesh developers <rolemesh@example.org>  Mon, 23 Nov 2026 00:00:00 +0000

rolemesh (0.2.0-1) unstable; urgency=medium

  * Added:
    - The first.

 -- RoleMesh developers <rolemesh@example.org>  Sun, 22 Nov 2026 00:00:00 +0000
"""
RPM = """\
* Mon Nov 23 2026 RoleMesh developers <rolemesh@example.org> - 0.3.0-1
- Added: Something that is 100%% new, and is told in a line so long that it has
  to be broken somewhere in the middle.
- Added: `another`: thing.
- Fixed: A mistake.

* Sun Nov 22 2026 RoleMesh developers <rolemesh@example.org> - 0.2.0-1
- Added: The first.
"""


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """Return a checkout of version 0.3.0 with a changelog that says so."""
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    (tmp_path / "rolemesh").mkdir()
    source = (repository / "rolemesh" / "__init__.py").read_text()
    (tmp_path / "rolemesh" / "__init__.py").write_text(
        source.replace(f'"{rolemesh.__version__}"', '"0.3.0"')
    )
    for name in ("changelog.py", "debian/control"):
        target = tmp_path / "packaging" / name
        target.parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(repository / "packaging" / name, target)
    return tmp_path


def ask(checkout: Path, *words: str) -> tuple[str, str, int]:
    """Return what changelog.py prints, what it complains of, and its status."""
    command: list[str | Path] = [sys.executable, checkout / "packaging" / "changelog.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout, done.stderr, done.returncode


@pytest.mark.parametrize(
    ("form", "text"),
    [("version", "0.3.0\n"), ("epoch", "1795392000\n"), ("debian", DEBIAN), ("rpm", RPM)],
)
def test_each_form_says_what_the_changelog_says(checkout: Path, form: str, text: str) -> None:
    assert ask(checkout, form) == (text, "", 0)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("## 0.3.0 (", "## 0.4.0 (", "CHANGELOG.md has no heading `## 0.3.0 (YYYY-MM-DD)`, and"),
        ("## 0.3.0 (2026-11-23)", "## 0.3.0", "CHANGELOG.md: a heading is `## VERSION (YYYY-MM-"),
        ("## Unreleased", "## 0.4.0 (2026-11-24)", "CHANGELOG.md begins with 0.4.0, rolemesh/__"),
        ("- ", "", "CHANGELOG.md says nothing about 0.3.0: no `- item` under a `### Kind`"),
        ("2026-11-23", "2026-11-33", "CHANGELOG.md: 2026-11-33 is no date"),
    ],
)
def test_a_changelog_that_does_not_fit_the_version_is_refused(
    checkout: Path, old: str, new: str, complaint: str
) -> None:
    path = checkout / "CHANGELOG.md"
    path.write_text(path.read_text().replace(old, new))
    said, complained, status = ask(checkout, "debian")
    assert (said, status) == ("", 1)
    assert complained.startswith(complaint)


def test_anything_else_is_no_form(checkout: Path) -> None:
    assert ask(checkout, "html") == (
        "",
        "changelog.py: one of version, epoch, debian, rpm is wanted\n",
        2,
    )


def test_this_version_has_its_entry(repository: Path) -> None:
    assert ask(repository, "version") == (f"{rolemesh.__version__}\n", "", 0)
    text, _, status = ask(repository, "debian")
    assert status == 0
    assert text.startswith(f"rolemesh ({rolemesh.__version__}-1) unstable; urgency=medium\n")
    (first, *_) = re.findall(r"^ -- .*>  (.*)$", text, re.MULTILINE)
    day = dt.datetime.strptime(first, "%a, %d %b %Y %H:%M:%S %z")
    assert ask(repository, "epoch") == (f"{int(day.timestamp())}\n", "", 0)
    assert max(map(len, text.splitlines())) <= 80
