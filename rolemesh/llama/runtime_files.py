"""The files of a running instance: its directory, its socket and its lock.

The lock is held by rolemesh-llama *and* inherited by its llama-server, so that it is free only
when both are gone: two llama-servers of one instance never overlap.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rolemesh.errors import ConfigError, Problem, StartError
from rolemesh.llama import server_facts
from rolemesh.names import InstanceName

DEFAULT_ROOT: Final = Path("/run/rolemesh-llama")
MAX_SOCKET_PATH_BYTES: Final = 107
"""What fits into sockaddr_un.sun_path beside the closing NUL (unix(7))."""

LOCK_POLL_S: Final = 0.1
_DIRECTORY_MODE: Final = 0o770


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeFiles:
    """Where one instance keeps what exists only while it runs."""

    directory: Path

    @classmethod
    def of(cls, instance: InstanceName, environment: Mapping[str, str]) -> "RuntimeFiles":
        """Return the files of an instance: in $RUNTIME_DIRECTORY, else in /run."""
        given = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        return cls(directory=Path(given) if given else DEFAULT_ROOT / instance)

    @property
    def socket(self) -> Path:
        """The UNIX socket that the llama-server listens on."""
        return self.directory / "http.sock"

    @property
    def lock(self) -> Path:
        """The file whose lock says that somebody runs the instance; it holds the holder's pid."""
        return self.directory / "lock"

    @property
    def facts(self) -> Path:
        """What is said of the running llama-server, see server_facts."""
        return self.directory / server_facts.FILE_NAME

    def prepare(self) -> None:
        """Make the directory; raises ConfigError when it cannot be used."""
        length = len(os.fsencode(self.socket))
        if length > MAX_SOCKET_PATH_BYTES:
            raise _unusable(
                self.socket,
                f"is too long for a UNIX socket ({length} bytes, at most {MAX_SOCKET_PATH_BYTES}); "
                "set RUNTIME_DIRECTORY to a shorter path",
            )
        try:
            # Only the leaf is ours alone; systemd and the child supervisor have made it already.
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            self.directory.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
        except OSError as err:
            remedy = "start rolemesh-llama by its unit, or set RUNTIME_DIRECTORY"
            raise _unusable(self.directory, f"cannot be made: {err.strerror}; {remedy}") from err

    def remove_socket(self) -> None:
        """Remove what lies at the socket's path: a stale socket blocks llama-server's bind."""
        try:
            self.socket.unlink(missing_ok=True)
        except OSError as err:
            explanation = f"cannot be removed: {err.strerror}; remove it"
            raise _unusable(self.socket, explanation) from err

    def remove_facts(self) -> None:
        """Take back what was said of a llama-server that runs no more."""
        with contextlib.suppress(OSError):
            self.facts.unlink(missing_ok=True)


@contextlib.contextmanager
def hold_lock(
    files: RuntimeFiles, *, wait_s: float, waiting: Callable[[str], None]
) -> Iterator[int]:
    """Hold the instance's lock; yields its file descriptor, for the llama-server to inherit.

    Blocks while a previous holder has it; `waiting` is told who that is. Raises StartError after
    `wait_s`, ConfigError when the lock file cannot be used.
    """
    try:
        fd = os.open(files.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
    except OSError as err:
        raise _unusable(files.lock, f"cannot be opened: {err.strerror}") from err
    try:
        _lock(fd, files, wait_s, waiting)
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        yield fd
    finally:
        os.close(fd)


def _lock(fd: int, files: RuntimeFiles, wait_s: float, waiting: Callable[[str], None]) -> None:
    deadline = time.monotonic() + wait_s
    while not _try_lock(fd):
        holder = _holder(fd)
        if time.monotonic() >= deadline:
            raise StartError(_held_message(files, holder, wait_s))
        waiting(holder)
        # The kernel tells nobody when a lock becomes free, short of blocking a thread on it.
        time.sleep(LOCK_POLL_S)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(fd: int) -> str:
    pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
    return f"rolemesh-llama with pid {pid}, or its llama-server" if pid.isdigit() else "somebody"


def _held_message(files: RuntimeFiles, holder: str, wait_s: float) -> str:
    return (
        f"{files.lock} is still held after {wait_s:g} s by {holder}: this instance runs already; "
        f"stop that one (`fuser {files.lock}` shows who it is)"
    )


def _unusable(path: Path, message: str) -> ConfigError:
    return ConfigError((Problem(where=str(path), key="", message=message),))
