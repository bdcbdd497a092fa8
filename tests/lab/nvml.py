"""GPUs that do not exist, as the real NVML binding (pynvml) sees them; nvml_shim.c says how.

Their used memory follows from the processes that run: a llama-server that was given one of them
by CUDA_VISIBLE_DEVICES takes memory from it, and gives it back by ending.
"""

import ctypes
import hashlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.lab.cache import cache_folder, locked

SOURCE = Path(__file__).with_name("nvml_shim.c")
LIBRARY = "libnvidia-ml.so.1"

# Return codes of NVML.
FINE = 0
DRIVER_NOT_LOADED = 9
GPU_IS_LOST = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeGpu:
    """One GPU. `used_mib` is what others than our processes use; `error` answers every question."""

    uuid: str
    name: str = "NVIDIA GeForce RTX 3090"
    total_mib: int = 24576
    used_mib: int = 0
    utilisation: int = 0
    temperature: int = 40
    error: int = FINE

    def line(self) -> str:
        """Return the GPU as nvml_shim.c reads it."""
        numbers = (self.total_mib, self.used_mib, self.utilisation, self.temperature, self.error)
        return "|".join((self.uuid, self.name, *map(str, numbers)))


class FakeGpus:
    """The GPUs of this machine, as far as whoever runs with `environment` can tell.

    Every change is seen by the next call of NVML in any process.
    """

    def __init__(self, folder: Path) -> None:
        self._state = folder / "gpus"
        self._gpus: dict[str, FakeGpu] = {}
        self._init_result = FINE
        self._write()

    @property
    def environment(self) -> Mapping[str, str]:
        """What a program needs in its environment, from its start, to see these GPUs."""
        libraries = [str(compiled_shim().parent), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            "FAKE_NVML": str(self._state),
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        }

    def add(self, name: str = "NVIDIA GeForce RTX 3090", *, total_mib: int = 24576) -> str:
        """Add a GPU after the others and return its UUID."""
        # Never the same twice: the GPUs of another run must not see this one's processes.
        uuid = f"GPU-{len(self._gpus):08x}-0000-4000-8000-{secrets.token_hex(6)}"
        self._gpus[uuid] = FakeGpu(uuid=uuid, name=name, total_mib=total_mib)
        self._write()
        return uuid

    def use(self, uuid: str, *, used_mib: int) -> None:
        """Let others than our processes use `used_mib` of the GPU."""
        self._change(replace(self._gpus[uuid], used_mib=used_mib))

    def set_load(self, uuid: str, *, utilisation: int, temperature: int = 60) -> None:
        """Set what the GPU reports as its utilisation (percent) and temperature (degrees C)."""
        gpu = self._gpus[uuid]
        self._change(replace(gpu, utilisation=utilisation, temperature=temperature))

    def lose(self, uuid: str) -> None:
        """Let the GPU fall off the bus: it is still counted, but every question to it fails."""
        self._change(replace(self._gpus[uuid], error=GPU_IS_LOST))

    def recover(self, uuid: str) -> None:
        """Bring a lost GPU back."""
        self._change(replace(self._gpus[uuid], error=FINE))

    def remove(self, uuid: str) -> None:
        """Take the GPU out of the machine: those after it move up by one index."""
        del self._gpus[uuid]
        self._write()

    def fail_init(self, result: int = DRIVER_NOT_LOADED) -> None:
        """Let NVML refuse to start from now on; FINE lets it start again."""
        self._init_result = result
        self._write()

    def _change(self, gpu: FakeGpu) -> None:
        self._gpus[gpu.uuid] = gpu
        self._write()

    def _write(self) -> None:
        lines = [f"init {self._init_result}", *(gpu.line() for gpu in self._gpus.values())]
        part = self._state.with_suffix(".part")
        part.write_text("".join(f"{line}\n" for line in lines))
        part.rename(self._state)


def compiled_shim() -> Path:
    """Return the path of the fake library, compiling it if this version of it is not cached."""
    key = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    cache = cache_folder("nvml")
    library = cache / key / LIBRARY
    with locked(cache):
        if not library.exists():
            library.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as unfinished:
                part = Path(unfinished, LIBRARY)
                _compile(part)
                part.rename(library)
    return library


def load_shim_here() -> None:
    """Make NVML mean the fake library in this process, which must not have loaded another one.

    The dynamic loader knows a library that is loaded already by its name, wherever it came from.
    """
    ctypes.CDLL(str(compiled_shim()))


def _compile(target: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        msg = "a C compiler is needed to make the fake NVML: apt-get install gcc libc6-dev"
        raise FileNotFoundError(msg)
    options = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}"]
    subprocess.run([compiler, *options, "-o", target, SOURCE], check=True)
