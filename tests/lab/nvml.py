"""GPUs that do not exist, as the real NVML binding (pynvml) sees them; nvml_shim.c says how.

A test makes `FakeGpus` in a folder that all who shall see the GPUs can read, and starts programs
with `environment` (on a host of the lab: shows the folder there, with the library and pynvml.py in
it, and sets the same variables in a drop-in). Every change is seen by the next call of NVML in any
process:

    add(name, total_mib=)            a GPU more, after the others; returns its UUID
    remove(uuid)                     a GPU less
    use(uuid, used_mib=)             memory that others than our processes use
    run(uuid, pid, mib, draws=)      a process of others, listed with its memory
    set_load(uuid, utilisation=, temperature=)
    set_health(uuid, ecc=, remap=)   uncorrected errors; a row that waits to be remapped
    report_xid(uuid, xid)            the driver reports an Xid, to those who have registered by then
    lose(uuid), recover(uuid)        off the bus: counted, but every question fails; and back
    fail(uuid, error)                another nvmlReturn_t than GPU_IS_LOST
    hang(uuid)                       questions about it are not answered before recover(uuid)
    partition(uuid, *mib)            MIG: one slice for each figure; returns their UUIDs
    fail_init(result)                NVML does not start: DRIVER_NOT_LOADED; NEVER hangs; FINE
    lack(function, ...)              a driver that is too old for these functions

Used memory follows from the processes that run, in one of two ways. By itself the library finds, in
the /proc of whoever asks, each llama-server that was given a GPU by CUDA_VISIBLE_DEVICES: it takes
the size of its model file, and gives it back by ending. That does for programs of one user on this
machine. For hosts, where agents may not look at llama-servers, and for more than that rule,
tests/lab/gpu_memory.py finds them from outside.
"""

import ctypes
import hashlib
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.lab.cache import cache_folder, locked

SOURCE = Path(__file__).with_name("nvml_shim.c")
LIBRARY = "libnvidia-ml.so.1"

# Return codes of NVML.
FINE = 0
DRIVER_NOT_LOADED = 9
GPU_IS_LOST = 15
RESET_REQUIRED = 16
UNKNOWN = 999
NEVER = -1  # no code, but no answer

REMAP_PENDING = 1
REMAP_FAILED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeGpu:
    """One GPU. `used_mib` is what others than our processes use; `error` answers every question.

    `mig`, `ecc` and `remap` are -1 for a card that does not have that.
    """

    uuid: str
    name: str = "NVIDIA GeForce RTX 3090"
    total_mib: int = 24576
    used_mib: int = 0
    utilisation: int = 0
    temperature: int = 40
    error: int = FINE
    mig: int = -1
    ecc: int = -1
    remap: int = -1

    def line(self, held_mib: int) -> str:
        """Return the GPU as nvml_shim.c reads it; `held_mib` is used besides."""
        memory = (self.total_mib, self.used_mib + held_mib)
        state = (self.utilisation, self.temperature, self.error, self.mig, self.ecc, self.remap)
        return "|".join((self.uuid, self.name, *map(str, (*memory, *state))))


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeSlice:
    """A MIG device: a part of a GPU."""

    parent: str
    uuid: str
    total_mib: int

    def line(self, held_mib: int) -> str:
        """Return the slice as nvml_shim.c reads it; `held_mib` of it is used."""
        name = f"NVIDIA MIG {self.total_mib // 1024}gb"
        return f"slice {self.parent}|{self.uuid}|{name}|{self.total_mib}|{held_mib}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeProcess:
    """A process on a GPU or a slice, by the pid that those see who ask."""

    uuid: str
    pid: int
    mib: int
    draws: bool = False

    def line(self) -> str:
        """Return the process as nvml_shim.c reads it."""
        return f"process {'G' if self.draws else 'C'}|{self.uuid}|{self.pid}|{self.mib}"


class FakeGpus:
    """The GPUs of this machine, as far as whoever runs with `environment` can tell."""

    def __init__(self, folder: Path) -> None:
        self._state = folder / "gpus"
        self._gpus: dict[str, FakeGpu] = {}
        self._slices: list[FakeSlice] = []
        self._others: list[FakeProcess] = []
        self._followed: tuple[FakeProcess, ...] | None = None
        self._held: Mapping[str, int] = {}
        self._xids: list[str] = []
        self._lacking: tuple[str, ...] = ()
        self._init_result = FINE
        self._writing = threading.Lock()
        self._write()

    @property
    def environment(self) -> Mapping[str, str]:
        """What a program needs in its environment, from its start, to see these GPUs."""
        libraries = [str(compiled_shim().parent), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            "FAKE_NVML": str(self._state),
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        }

    @property
    def uuids(self) -> list[str]:
        """The UUIDs of the GPUs, in order, and of their slices."""
        return [*self._gpus, *(each.uuid for each in self._slices)]

    def add(self, name: str = "NVIDIA GeForce RTX 3090", *, total_mib: int = 24576) -> str:
        """Add a GPU after the others and return its UUID."""
        # Never the same twice: the GPUs of another run must not see this one's processes.
        uuid = f"GPU-{len(self._gpus):08x}-0000-4000-8000-{secrets.token_hex(6)}"
        self._change(FakeGpu(uuid=uuid, name=name, total_mib=total_mib))
        return uuid

    def use(self, uuid: str, *, used_mib: int) -> None:
        """Let others than our processes use `used_mib` of the GPU."""
        self._change(replace(self._gpus[uuid], used_mib=used_mib))

    def run(self, uuid: str, pid: int, mib: int, *, draws: bool = False) -> None:
        """List a process of others, which uses `mib` of the GPU (or slice)."""
        self._others.append(FakeProcess(uuid=uuid, pid=pid, mib=mib, draws=draws))
        self._write()

    def set_load(self, uuid: str, *, utilisation: int, temperature: int = 60) -> None:
        """Set what the GPU reports as its utilisation (percent) and temperature (degrees C)."""
        gpu = self._gpus[uuid]
        self._change(replace(gpu, utilisation=utilisation, temperature=temperature))

    def set_health(self, uuid: str, *, ecc: int = 0, remap: int = 0) -> None:
        """Set the number of uncorrected errors, and REMAP_PENDING or REMAP_FAILED."""
        self._change(replace(self._gpus[uuid], ecc=ecc, remap=remap))

    def report_xid(self, uuid: str, xid: int) -> None:
        """Let the driver report an Xid of the GPU."""
        self._xids.append(f"xid {uuid}|{len(self._xids) + 1}|{xid}")
        self._write()

    def lose(self, uuid: str) -> None:
        """Let the GPU fall off the bus: it is still counted, but every question to it fails."""
        self.fail(uuid, GPU_IS_LOST)

    def fail(self, uuid: str, error: int) -> None:
        """Let every question to the GPU fail with `error`, a return code of NVML."""
        self._change(replace(self._gpus[uuid], error=error))

    def hang(self, uuid: str) -> None:
        """Let no question to the GPU be answered; those asked are when it is back."""
        self.fail(uuid, NEVER)

    def recover(self, uuid: str) -> None:
        """Bring a GPU back that was lost, failed or hung."""
        self.fail(uuid, FINE)

    def remove(self, uuid: str) -> None:
        """Take the GPU out of the machine: those after it move up by one index."""
        del self._gpus[uuid]
        self._write()

    def partition(self, uuid: str, *total_mib: int) -> list[str]:
        """Turn MIG on and make a slice of each size; return their UUIDs."""
        others = [each for each in self._slices if each.parent != uuid]
        made = [
            FakeSlice(parent=uuid, uuid=f"MIG-{secrets.token_hex(16)}", total_mib=each)
            for each in total_mib
        ]
        self._slices = [*others, *made]
        self._change(replace(self._gpus[uuid], mig=1))
        return [each.uuid for each in made]

    def fail_init(self, result: int = DRIVER_NOT_LOADED) -> None:
        """Let NVML refuse to start from now on; FINE lets it start again."""
        self._init_result = result
        self._write()

    def lack(self, *functions: str) -> None:
        """Let the driver be one that does not have these functions yet."""
        self._lacking = functions
        self._write()

    def follow(self, processes: tuple[FakeProcess, ...], held_mib: Mapping[str, int]) -> None:
        """Take our processes from here from now on, with what ended ones still hold by UUID."""
        if (processes, held_mib) != (self._followed, self._held):
            self._followed, self._held = processes, held_mib
            self._write()

    def _change(self, gpu: FakeGpu) -> None:
        self._gpus[gpu.uuid] = gpu
        self._write()

    def _write(self) -> None:
        with self._writing:
            part = self._state.with_suffix(".part")
            part.write_text("".join(f"{line}\n" for line in self._lines()))
            part.rename(self._state)

    def _lines(self) -> Iterable[str]:
        yield f"init {self._init_result}"
        yield from (f"lacks {function}" for function in self._lacking)
        held = self._held
        yield from (gpu.line(held.get(gpu.uuid, 0)) for gpu in list(self._gpus.values()))
        yield from (part.line(held.get(part.uuid, 0)) for part in self._slices)
        yield from self._xids
        if self._followed is not None:
            yield "followed"
        yield from (each.line() for each in (*self._others, *(self._followed or ())))


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
