"""Opening files that others wrote, and why one cannot be used: sandboxes, users, mounts."""

import os
import pwd
import stat
from pathlib import Path
from typing import BinaryIO, Final

# Directory that a unit's sandbox hides or replaces -> the setting that shows it again.
_SANDBOXED: Final = (
    ("/home", "ProtectHome=read-only"),
    ("/root", "ProtectHome=read-only"),
    ("/run/user", "ProtectHome=read-only"),
    ("/tmp", "PrivateTmp=no"),  # noqa: S108 - named, not used
    ("/var/tmp", "PrivateTmp=no"),  # noqa: S108
)


class NotRegular(OSError):
    """What is there is no regular file; `strerror` says what it is."""


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; raises NotRegular for anything else, without waiting for it."""
    # Non-blocking: opening a FIFO would wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    raise NotRegular(0, "is a directory" if stat.S_ISDIR(mode) else "is not a regular file")


def explain_absence(path: Path, *, in_unit: bool) -> str:
    """Say why `path` seems not to be there; `in_unit`: this process is a systemd service."""
    parent = _deepest_visible(path)
    if parent == path.parent:
        return f"{path} does not exist" + _sandbox_remedy(path, in_unit=in_unit)
    explanation = (
        f"{path} does not exist: there is no {_first_missing(path, parent)} (is it mounted?)"
    )
    return explanation + _sandbox_remedy(path, in_unit=in_unit)


def explain_refusal(path: Path, *, in_unit: bool) -> str:
    """Say why `path` may not be read."""
    barrier = next((each for each in reversed(path.parents) if not _may_enter(each)), None)
    where = f": {barrier} is closed to it" if barrier else ""
    explanation = f"{path} may not be read by user {user_name()}{where}"
    return explanation + (_sandbox_remedy(path, in_unit=in_unit) or "; change its owner or mode")


def user_name() -> str:
    """Return the name of the user this process acts as, its number where it has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _may_enter(directory: Path) -> bool:
    return os.access(directory, os.X_OK, effective_ids=True)


def _deepest_visible(path: Path) -> Path:
    return next((each for each in path.parents if os.path.lexists(each)), Path("/"))


def _first_missing(path: Path, parent: Path) -> Path:
    return parent / path.relative_to(parent).parts[0]


def hidden_directory(path: Path) -> tuple[str, str] | None:
    """Return the directory above `path` that a unit's sandbox may hide, and what shows it again."""
    found = (each for each in _SANDBOXED if path.is_relative_to(each[0]))
    return next(found, None)


def _sandbox_remedy(path: Path, *, in_unit: bool) -> str:
    hidden = hidden_directory(path) if in_unit else None
    if hidden is None:
        return ""
    directory, setting = hidden
    return (
        f"; services do not see {directory}: move it (to /var/lib/rolemesh/models), or run "
        f"`systemctl edit rolemesh-llama@.service` and add a line [Service] and a line {setting}"
    )
