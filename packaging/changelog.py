#!/usr/bin/python3
"""changelog.py version|epoch|debian|rpm: what the packages say of CHANGELOG.md, on stdout.

The version is the one in rolemesh/__init__.py, and CHANGELOG.md has its heading, `## 0.1.0 (2026-11-22)`, as the
first with a date. What stands under `## Unreleased` is of no package yet.

    version     the version
    epoch       its date as seconds since 1970: what a build takes as SOURCE_DATE_EPOCH
    debian      debian/changelog, see deb-changelog(5)
    rpm         what follows %changelog in a spec

Exit status 1, and what is wrong on stderr, when the two files do not fit together.
"""

import datetime as dt
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "rolemesh"
REVISION = "1"  # of the packages
DEBIAN_WIDTH = RPM_WIDTH = 80
HEADING = re.compile(r"## (?P<version>\d\S*) \((?P<date>\d{4}-\d\d-\d\d)\)")


class ChangelogError(Exception):
    """The changelog and the version do not fit together."""


@dataclass(frozen=True)
class Entry:
    """What is new in one version: paragraphs by their kind, such as Added."""

    version: str
    date: dt.datetime
    changes: Mapping[str, Sequence[str]]


def entries(text: str) -> list[Entry]:
    """Return the entries that have a version, the newest first."""
    found = []
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        if heading.strip() == "## Unreleased":
            continue
        match = HEADING.fullmatch(heading.strip())
        if match is None:
            msg = f"CHANGELOG.md: a heading is `## VERSION (YYYY-MM-DD)`, not `{heading}`"
            raise ChangelogError(msg)
        found.append(Entry(match["version"], midnight(match["date"]), changes(body)))
    return found


def midnight(date: str) -> dt.datetime:
    """Return the beginning of a day, in UTC."""
    try:
        return dt.datetime.fromisoformat(date).replace(tzinfo=dt.UTC)
    except ValueError as err:
        msg = f"CHANGELOG.md: {date} is no date: {err}"
        raise ChangelogError(msg) from None


def changes(body: str) -> dict[str, list[str]]:
    """Return the items of a section's lists, each in one line, by the headings above them."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^### ", body, flags=re.MULTILINE):
        kind, _, items = part.partition("\n")
        each = re.split(r"^- ", items, flags=re.MULTILINE)[1:]
        if each:
            found[kind.strip()] = [" ".join(item.split()) for item in each]
    return found


def released() -> list[Entry]:
    """Return the entries from that of the version in rolemesh/__init__.py on."""
    version = version_of_program()
    found = entries((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    if version not in [entry.version for entry in found]:
        msg = (
            f"CHANGELOG.md has no heading `## {version} (YYYY-MM-DD)`, "
            f"and {version} is the version in rolemesh/__init__.py"
        )
        raise ChangelogError(msg)
    if found[0].version != version:
        msg = f"CHANGELOG.md begins with {found[0].version}, rolemesh/__init__.py has {version}"
        raise ChangelogError(msg)
    if not found[0].changes:
        msg = f"CHANGELOG.md says nothing about {version}: no `- item` under a `### Kind`"
        raise ChangelogError(msg)
    return found


def version_of_program() -> str:
    """Return the version, without running what has it."""
    text = (ROOT / "rolemesh" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__\b.*= "(.+)"$', text, re.MULTILINE)
    if match is None:
        msg = "rolemesh/__init__.py has no __version__"
        raise ChangelogError(msg)
    return match[1]


def maintainer() -> str:
    """Return who makes the packages."""
    text = (ROOT / "packaging" / "debian" / "control").read_text(encoding="utf-8")
    (found,) = re.findall(r"^Maintainer: (.+)$", text, re.MULTILINE)
    return str(found)


def epoch() -> Iterator[str]:
    """Yield midnight of the version's day."""
    yield str(int(released()[0].date.timestamp()))


def debian() -> Iterator[str]:
    """Yield the lines of debian/changelog."""
    for number, entry in enumerate(released()):
        yield from [""] if number else []
        yield f"{SOURCE} ({entry.version}-{REVISION}) unstable; urgency=medium"
        yield ""
        for kind, items in entry.changes.items():
            yield f"  * {kind}:"
            for item in items:
                yield from wrapped(item, first="    - ", width=DEBIAN_WIDTH)
        yield ""
        yield f" -- {maintainer()}  {entry.date:%a, %d %b %Y %H:%M:%S %z}"


def rpm() -> Iterator[str]:
    """Yield the lines that follow %changelog."""
    for number, entry in enumerate(released()):
        yield from [""] if number else []
        yield f"* {entry.date:%a %b %d %Y} {maintainer()} - {entry.version}-{REVISION}"
        for kind, items in entry.changes.items():
            for item in items:
                text = f"{kind}: {item}".replace("%", "%%")
                yield from wrapped(text, first="- ", width=RPM_WIDTH)


def wrapped(text: str, *, first: str, width: int) -> list[str]:
    """Break a text into lines, which hang below its first one."""
    hanging = " " * len(first)
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


VERBS: Mapping[str, Callable[[], Iterator[str]]] = {
    "version": lambda: iter([version_of_program()]),
    "epoch": epoch,
    "debian": debian,
    "rpm": rpm,
}


def main(arguments: Sequence[str]) -> int:
    """Print what is asked for; returns the exit status."""
    if len(arguments) != 1 or arguments[0] not in VERBS:
        sys.stderr.write(f"changelog.py: one of {', '.join(VERBS)} is wanted\n")
        return 2
    try:
        lines = list(VERBS[arguments[0]]())
    except ChangelogError as err:
        sys.stderr.write(f"{err}\n")
        return 1
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
