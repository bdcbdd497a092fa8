"""Entries of this host's journal, read with the rights of the caller.

By systemd-python where that is installed, else by `journalctl`.
"""

import importlib.util
import itertools
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

DIRECTORIES: Final = (Path("/var/log/journal"), Path("/run/log/journal"))
MOST_ENTRIES: Final = 2000
"""More would be another's: one request leaves a handful."""

_TIME: Final = "__REALTIME_TIMESTAMP"
"""When journald received the entry, in microseconds since 1970 (systemd.journal-fields(7))."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_JOURNALCTL_S: Final = 60

Entry = tuple[datetime, Mapping[str, str]]
"""When it was received, and its fields."""


class JournalUnreadable(Exception):
    """There is no journal here, or the caller may not read it; the text says which."""


def read_entries(
    *matches: str, since: datetime | None = None, until: datetime | None = None
) -> list[Entry]:
    """Return the entries that match all of FIELD=VALUE, oldest first; raises JournalUnreadable."""
    has_module = importlib.util.find_spec("systemd") is not None
    found = (read_by_module if has_module else read_by_journalctl)(matches, since, until)
    if not found:
        # Only now: an entry may be in a file that is the caller's own.
        require_rights(DIRECTORIES)
    return found


def read_by_module(
    matches: Iterable[str],
    since: datetime | None,
    until: datetime | None,
    directory: Path | None = None,
) -> list[Entry]:
    """Return entries by way of systemd-python; `directory` holds the files, else it is systemd's."""
    # Not at the top: it may not be there.
    from systemd.journal import Reader  # noqa: PLC0415

    path = None if directory is None else str(directory)
    with Reader(path=path, converters={_TIME: int}) as reader:
        for match in matches:
            reader.add_match(match)
        if since is None:
            reader.seek_head()
        else:
            reader.seek_realtime(_microseconds(since))
        entries = ((_time_of(entry[_TIME]), _texts(entry)) for entry in reader)
        in_time = itertools.takewhile(lambda entry: until is None or entry[0] <= until, entries)
        return list(itertools.islice(in_time, MOST_ENTRIES))


def read_by_journalctl(
    matches: Iterable[str], since: datetime | None, until: datetime | None
) -> list[Entry]:
    """Return entries by way of `journalctl`; raises JournalUnreadable where that cannot be used."""
    command = ["journalctl", "--quiet", "--no-pager", "--all", "--output=json"]
    if since is not None:
        command.append(f"--since=@{since.timestamp():.6f}")
    if until is not None:
        command.append(f"--until=@{until.timestamp():.6f}")
    try:
        done = subprocess.run(  # noqa: S603 - words, not a shell's line
            [*command, *matches], capture_output=True, check=False, timeout=_JOURNALCTL_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"journalctl cannot be used on this host: {error}"
        raise JournalUnreadable(msg) from error
    entries = map(json.loads, done.stdout.splitlines()[:MOST_ENTRIES])
    return [(_time_of(int(entry[_TIME])), _texts(entry)) for entry in entries]


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def _time_of(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _texts(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of an entry as text, the journal's own addresses (`__...`) left out."""
    return {name: _text(value) for name, value in entry.items() if not name.startswith("__")}


def _text(value: Any) -> str:
    if isinstance(value, list):
        # journalctl's JSON: bytes that are no text, or a field that is there several times.
        if all(isinstance(each, int) for each in value):
            return bytes(value).decode("utf-8", "replace")
        return _text(value[0])
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


def require_rights(directories: Iterable[Path]) -> None:
    """Raise JournalUnreadable when what was not found may be where the caller may not look."""
    seen = False
    for directory in directories:
        if not directory.exists():
            continue
        if not os.access(directory, os.R_OK | os.X_OK):
            raise _refused()
        for file in directory.glob("*/system.journal"):
            seen = True
            if not os.access(file, os.R_OK):
                raise _refused()
    if not seen:
        msg = "this host keeps no journal"
        raise JournalUnreadable(msg)


def _refused() -> JournalUnreadable:
    return JournalUnreadable(
        "you may not read this host's journal: join the group systemd-journal, or use sudo"
    )
