"""The remembered names of GPUs: `gpus.json` in a directory that all agents of a host share.

Under systemd that is /var/lib/rolemesh/gpus, the second StateDirectory= of each agent, so that
`gpu1` is the same card to all of them and to the units they start. An agent that supervises its
llama-servers itself has the file in its own state directory.
"""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rolemesh.agent.inventory import GPU_NAME, GpuNames, GpuSample, name_gpus, renumbered
from rolemesh.runtime.state import StateFile

LOCK_WAIT_S: Final = 2.0
"""How long another agent may take to write; it takes milliseconds."""

_LOCK_POLL_S: Final = 0.01
_UUID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9/:._\[\]-]{0,127}")


def numbers_directory(state_directory: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Return where the file is: the second of systemd's $STATE_DIRECTORY if there is one.

    An agent whose own directory is not the first of them (--state-dir) keeps everything there.
    """
    first, _, second = environ.get("STATE_DIRECTORY", "").partition(":")
    return Path(second) if second and Path(first) == state_directory else state_directory


class GpuNumbersFile:
    """UUID -> name, kept over restarts and by all agents together.

    Waits for other agents in its calls: to be used in a thread.
    """

    def __init__(self, directory: Path, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self._directory = directory
        self._lock_wait_s = lock_wait_s
        self._file = StateFile(directory / "gpus.json")
        self._names: GpuNames = {}
        self._seen: tuple[int, ...] = ()

    @property
    def problem(self) -> str:
        """Say since when the numbers are not saved, and why; "" when they are."""
        return self._file.problem

    def name(self, sample: GpuSample) -> GpuNames:
        """Return the names of all that is in the sample and of all that ever was.

        What is new gets its name here. A name that cannot be saved stands in `problem`, and is tried
        again with each call.
        """
        self._follow()
        names = name_gpus(sample, self._names)
        if names != self._names or (names and self._seen != _signature(self._file.path)):
            with self._locked():
                self._follow()
                self._save(name_gpus(sample, self._names))
        return self._names

    def renumber(self, sample: GpuSample) -> GpuNames:
        """Forget what is not there, number what is from 0 in PCI order, and return that."""
        with self._locked():
            self._save(renumbered(sample))
        return self._names

    def _follow(self) -> None:
        """Take over what is in the file if it changed: another agent has seen something new.

        A file that vanished or makes no sense is written again.
        """
        seen = _signature(self._file.path)
        if seen and seen != self._seen:
            names = _sound(self._file.load())
            self._names = names or self._names
            self._seen = seen

    def _save(self, names: GpuNames) -> None:
        self._file.save(dict(names))
        self._names = names
        # Of a file that was not written it is what no file has, so that the next call tries again.
        self._seen = (0,) if self._file.problem else _signature(self._file.path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other agents from writing; where that cannot be done, saving says why."""
        try:
            path = self._directory / "gpus.lock"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError:
            yield
            return
        try:
            _lock(fd, self._lock_wait_s)
            yield
        finally:
            os.close(fd)


def _lock(fd: int, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() >= deadline:
            return  # its holder was stopped in the middle: better one name too many than none
        time.sleep(_LOCK_POLL_S)


def _sound(tree: Any) -> GpuNames:
    """Return the entries that make sense."""
    names: dict[str, str] = {}
    for uuid, name in tree.items() if isinstance(tree, dict) else ():
        is_name = isinstance(name, str) and GPU_NAME.fullmatch(name) and name not in names.values()
        if is_name and _UUID.fullmatch(uuid):
            names[uuid] = name
    return names


def _signature(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_size)
