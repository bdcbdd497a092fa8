"""One agent to a directory: two of them would take each other's sockets and overwrite files."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from rolemesh.errors import StartError


@contextlib.contextmanager
def hold_directory(
    directory: Path, *, name: str, remedy: str, inherited: int | None = None
) -> Iterator[int]:
    """Hold `directory` for the length of the block, by a lock on the file `name` in it.

    Yields its descriptor; `inherited` is that of the same lock, from another process of this agent.
    The file holds the pid of who has it. The kernel lets go of the lock with the process, however
    that ends. Raises StartError, which ends with `remedy`, when another process has the directory.
    """
    path = directory / name
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags, 0o640) if inherited is None else inherited
    except OSError as err:
        msg = f"cannot open {path}: {err.strerror}; {remedy}"
        raise StartError(msg) from err
    try:
        _lock(fd, path, remedy)  # of an inherited one, it changes nothing
        yield fd
    finally:
        os.close(fd)


def _lock(fd: int, path: Path, remedy: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except BlockingIOError as err:
        msg = f"{_holder(fd)} uses {path.parent} already ({path.name} is locked); {remedy}"
        raise StartError(msg) from err
    except OSError as err:
        msg = f"cannot lock {path}: {err.strerror}; {remedy}"
        raise StartError(msg) from err


def _holder(fd: int) -> str:
    pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
    return f"the agent with pid {pid}" if pid.isdecimal() else "another agent"
