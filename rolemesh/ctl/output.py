"""What is written: tables and lines for people, JSON for programs, complaints on stderr.

Colour and progress only on a terminal. Text from elsewhere cannot move the cursor or forge a line.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self

Colour = Literal["green", "yellow", "red", "bold", "dim"]

_CODES: Final[dict[Colour, str]] = {
    "green": "32",
    "yellow": "33",
    "red": "31",
    "bold": "1",
    "dim": "2",
}
_GAP: Final = "  "
_NUMBER: Final = re.compile(r"-|[0-9.]+(?: ?[A-Za-z%]{1,3})?(?: [0-9]+[a-z])?(?: ago)?")
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"))


def put(line: str = "") -> None:
    """Write a line to stdout."""
    sys.stdout.write(line + "\n")


def complain(line: str) -> None:
    """Write a line to stderr: what is wrong, and what to do about it."""
    sys.stderr.write(f"rolemeshctl: {clean(line)}\n")


def note(line: str) -> None:
    """Write a line for people to stderr, where it cannot get into what a program reads."""
    sys.stderr.write(clean(line) + "\n")


def put_json(tree: Any) -> None:
    """Write `tree` as JSON."""
    put(json.dumps(tree, indent=2, ensure_ascii=False))


def clean(text: str) -> str:
    """Return `text` without anything that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else "�" for each in text)


def coloured(text: str, colour: Colour) -> str:
    """Return `text` in a colour, where stdout is a terminal."""
    if os.environ.get("NO_COLOR") or not sys.stdout.isatty():
        return text
    return f"\033[{_CODES[colour]}m{text}\033[0m"


class Cell(str):
    """A cell of a table with a colour of its own."""

    __slots__ = ("colour",)

    def __new__(cls, text: str, colour: Colour) -> Self:
        """Return `text` as a cell."""
        cell = super().__new__(cls, text)
        cell.colour = colour
        return cell

    colour: Colour


def put_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table; columns that are all numbers stand to the right, None is `-`."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[column]) for line in (head, *cells)) for column in range(len(head))]
    is_number = [_are_numbers([row[column] for row in cells]) for column in range(len(head))]
    put(_line([Cell(title, "bold") for title in head], widths, is_number))
    for row in cells:
        put(_line(row, widths, is_number))


def _cell(value: object) -> str:
    if isinstance(value, Cell):
        return Cell(clean(value), value.colour)
    return "-" if value is None or value == "" else clean(str(value))


def _are_numbers(column: Sequence[str]) -> bool:
    return any(text != "-" for text in column) and all(map(_NUMBER.fullmatch, column))


def _line(cells: Sequence[str], widths: Sequence[int], is_number: Sequence[bool]) -> str:
    parts = []
    for index, (cell, width, right) in enumerate(zip(cells, widths, is_number, strict=True)):
        is_last = index == len(cells) - 1
        padding = " " * (width - len(cell))
        text = coloured(str(cell), cell.colour) if isinstance(cell, Cell) else cell
        parts.append(padding + text if right else text + ("" if is_last else padding))
    return _GAP.join(parts).rstrip()


def duration(seconds: float | None) -> str:
    """Return a time span as people read it: `0.3 s`, `47 s`, `3m 12s`, `2d 4h`."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = int(seconds)
    parts: list[str] = []
    for size, unit in (*_UNITS, (1, "s")):
        count, whole = divmod(whole, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def memory(mib: int | None) -> str:
    """Return an amount of memory as people read it: `9.1 GiB`, `640 MiB`."""
    if mib is None:
        return "-"
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib} MiB"


class Progress:
    """One line on a terminal that says what is waited for; it goes when the waiting ends."""

    def __init__(self) -> None:
        self.is_shown = sys.stderr.isatty()
        self._has_line = False

    def __enter__(self) -> Self:
        """Begin to wait."""
        return self

    def say(self, text: str) -> None:
        """Show `text` in place of what stood there."""
        if self.is_shown:
            sys.stderr.write(f"\r\033[K{clean(text)}")
            sys.stderr.flush()
            self._has_line = True

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _at: TracebackType | None,
    ) -> None:
        """Take the line away."""
        if self._has_line:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
