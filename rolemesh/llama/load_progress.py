"""How far a llama-server is with loading its weights, from what the kernel counts of it."""

from pathlib import Path

_KIB = 1024


class LoadProgress:
    """Watches one loading process; `fraction` is an estimate and never reaches 1."""

    def __init__(self, pid: int, model_bytes: int, *, proc: Path = Path("/proc")) -> None:
        self._process = proc / str(pid)
        self._model_bytes = model_bytes
        self._loaded_bytes = 0

    @property
    def loaded_bytes(self) -> int:
        """The most that was seen of the weights in memory or read from disk."""
        return self._loaded_bytes

    @property
    def fraction(self) -> float:
        """How much of the weights that is, 0 to 0.99."""
        if self._model_bytes <= 0:
            return 0.0
        return min(self._loaded_bytes / self._model_bytes, 0.99)

    def sample(self) -> None:
        """Look at the process once.

        Mapped weights count as resident pages; those read into a GPU's memory, as bytes read.
        """
        resident = _read_number(self._process / "status", "VmHWM:") * _KIB
        read = _read_number(self._process / "io", "rchar:")
        self._loaded_bytes = max(self._loaded_bytes, resident, read)


def _read_number(path: Path, key: str) -> int:
    """Return the number after `key` in a file of /proc, 0 where it cannot be read."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    values = [line.split()[1] for line in lines if line.startswith(key)]
    return int(values[0]) if values and values[0].isdigit() else 0
