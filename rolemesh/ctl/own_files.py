"""Files that rolemeshctl writes: put in place at once and for good, for root and one group alone."""

import contextlib
import grp
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rolemesh.ctl.outcomes import Failed

FILE_MODE: Final = 0o640
DIRECTORY_MODE: Final = 0o750


def write(file: Path, text: str, *, group: str, is_new: bool) -> None:
    """Put `text` in place; an existing file is never replaced as a new one (then raises Failed)."""
    with written_beside(file, text, group=group) as temporary:
        try:
            if is_new:
                file.hardlink_to(temporary)
            else:
                temporary.rename(file)
        except FileExistsError as error:
            msg = f"{file} exists already: choose another name, or remove that file"
            raise Failed(msg) from error
        _sync_directory(file.parent)


def remove(file: Path) -> None:
    """Remove a file for good."""
    file.unlink()
    _sync_directory(file.parent)


def make_directory(directory: Path, *, group: str) -> None:
    """Make a directory that only root and `group` can read, unless it is there."""
    directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=DIRECTORY_MODE)
        _give_to_group(directory, group)


@contextlib.contextmanager
def written_beside(file: Path, text: str, *, group: str) -> Iterator[Path]:
    """Write `text` to a file beside `file`, for the length of the block unless it is moved."""
    # A name that begins with a dot is not read as configuration.
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(text)
            os.fchmod(opened.fileno(), FILE_MODE)
            _give_to_group(temporary, group)
            opened.flush()
            os.fsync(opened.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _give_to_group(path: Path, group: str) -> None:
    """Let the daemon read it, where that has a group of its own and we may."""
    with contextlib.suppress(KeyError, PermissionError):
        os.chown(path, -1, grp.getgrnam(group).gr_gid)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
