"""What this process takes of the machine, as /proc/self tells it (proc(5))."""

import os
import resource
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from rolemesh.runtime.exposition import Family, Sample

_PROC: Final = Path("/proc/self")


def process_families() -> Iterable[Family]:
    """Yield the metrics that every Prometheus client has of its process; what is unknown is left out."""
    yield _one("process_cpu_seconds_total", "counter", "CPU time used.", time.process_time())
    resident = _resident_bytes()
    if resident is not None:
        text = "Resident memory in bytes."
        yield _one("process_resident_memory_bytes", "gauge", text, resident)
    fds = _open_fds()
    if fds is not None:
        yield _one("process_open_fds", "gauge", "Open file descriptors.", fds)
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY:
        yield _one("process_max_fds", "gauge", "Most file descriptors that may be open.", most)


def _one(name: str, kind: str, text: str, value: float) -> Family:
    return Family(name=name, kind=kind, help=text, samples=(Sample(value),))


def _resident_bytes() -> int | None:
    try:
        pages = int((_PROC / "statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _open_fds() -> int | None:
    directory = _PROC / "fd"
    try:
        # Since Linux 6.2 the size is their number, and costs nothing.
        return directory.stat().st_size or sum(1 for _ in directory.iterdir())
    except OSError:
        return None
