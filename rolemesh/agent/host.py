"""What the machine is besides its GPUs."""

import os
import platform
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Name, kernel and size of the machine; None: /proc does not tell."""

    hostname: str
    kernel: str
    cpus: int
    memory_total_mib: int | None
    memory_available_mib: int | None

    def to_json(self) -> dict[str, Any]:
        """Return `host` of reports."""
        return {
            "hostname": self.hostname,
            "kernel": self.kernel,
            "cpus": self.cpus,
            "memory_total_mib": self.memory_total_mib,
            "memory_available_mib": self.memory_available_mib,
        }


def read_host(meminfo: Path = Path("/proc/meminfo")) -> Host:
    """Return the machine as it is now."""
    memory = _read_meminfo(meminfo)
    return Host(
        hostname=socket.gethostname(),
        kernel=platform.release(),
        cpus=os.cpu_count() or 1,
        memory_total_mib=memory.get("MemTotal"),
        memory_available_mib=memory.get("MemAvailable"),
    )


def _read_meminfo(path: Path) -> dict[str, int]:
    """Return the lines of /proc/meminfo in MiB, none when it cannot be read."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {
        pair[0].rstrip(":"): int(pair[1]) // 1024
        for pair in pairs
        if len(pair) == 3 and pair[1].isdigit()
    }
