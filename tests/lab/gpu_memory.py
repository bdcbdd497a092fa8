"""Lets the memory of fake GPUs follow the llama-servers that run, wherever they run.

On hosts an agent may not look at the processes of other users, and neither may the fake library in
it. So a thread of the test looks from outside, as root, at the /proc of this machine, where the
processes of all hosts are, and writes down what it finds:

    with gpu_memory(gpus, fixed_mib={"planner-*.gguf": 600}, release_s=2):
        ...

A llama-server takes memory from each GPU (or MIG slice) of `gpus` that its CUDA_VISIBLE_DEVICES
names, from its start to its end however it ends:

    factor        size of its model file times this, split evenly over its GPUs; 1 unless given
    overhead_mib  and this on each of them; 200 unless given
    fixed_mib     or instead of both, by a pattern of the file's name: so much in all, split evenly
    release_s     for so long after its end the memory is still taken, by no process

Several `FakeGpus`, one for each host, each need one of these; UUIDs keep them apart. What happens is
seen LOOK_S later at most. While it lasts, the library looks at no process by itself.
"""

import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tests.lab.nvml import FakeGpus, FakeProcess
from tests.lab.processes import environment_of

LOOK_S = 0.03
FORGET_AFTER_S = 3.0  # a process that has not become a llama-server by then will not
_MIB = 1 << 20
_VARIABLE = b"CUDA_VISIBLE_DEVICES="


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRule:
    """How much memory a llama-server takes."""

    factor: float
    overhead_mib: int
    fixed_mib: Mapping[str, int]

    def mib_on_each(self, model: str, size: int, gpus: int) -> int:
        """Return what is taken on each of `gpus` for a model file of `size` bytes."""
        for pattern, mib in self.fixed_mib.items():
            if fnmatch(Path(model).name, pattern):
                return mib // gpus
        return int(size * self.factor) // _MIB // gpus + self.overhead_mib


@contextmanager
def gpu_memory(
    gpus: FakeGpus,
    *,
    factor: float = 1.0,
    overhead_mib: int = 200,
    fixed_mib: Mapping[str, int] | None = None,
    release_s: float = 0.0,
) -> Iterator[None]:
    """Let the memory of `gpus` follow the llama-servers for the length of the block."""
    rule = MemoryRule(factor=factor, overhead_mib=overhead_mib, fixed_mib=fixed_mib or {})
    follower = _Follower(gpus, rule, release_s)
    follower.look()
    ended = threading.Event()

    def look_again_and_again() -> None:
        while not ended.wait(LOOK_S):
            follower.look()

    thread = threading.Thread(target=look_again_and_again, name="gpu memory")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Follower:
    """What is known of the processes of this machine."""

    def __init__(self, gpus: FakeGpus, rule: MemoryRule, release_s: float) -> None:
        self._gpus = gpus
        self._rule = rule
        self._release_s = release_s
        self._running: dict[int, tuple[FakeProcess, ...]] = {}
        self._others: dict[int, float] = {}  # pid -> when it was first seen
        self._held: list[tuple[float, FakeProcess]] = []  # until when

    def look(self) -> None:
        """Look once at all processes, and write down what they take."""
        now = time.monotonic()
        pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        self._others = {pid: since for pid, since in self._others.items() if pid in pids}
        for pid in [pid for pid in self._running if pid not in pids or not _takes_memory(pid)]:
            until = now + self._release_s
            self._held += [(until, process) for process in self._running.pop(pid)]
        for pid in pids - self._running.keys():
            if now - self._others.setdefault(pid, now) < FORGET_AFTER_S:
                self._look_at(pid)
        self._held = [(until, process) for until, process in self._held if until > now]
        self._write()

    def _look_at(self, pid: int) -> None:
        uuids = _visible_gpus(pid, self._gpus.uuids)
        model = _model_of(pid) if uuids else ""
        if model:
            mib = self._rule.mib_on_each(model, _size_of(pid, model), len(uuids))
            inner = _pid_in_its_host(pid)
            processes = [FakeProcess(uuid=uuid, pid=inner, mib=mib) for uuid in uuids]
            self._running[pid] = tuple(processes)
            del self._others[pid]

    def _write(self) -> None:
        held: dict[str, int] = {}
        for _, process in self._held:
            held[process.uuid] = held.get(process.uuid, 0) + process.mib
        running = [each for processes in self._running.values() for each in processes]
        self._gpus.follow(tuple(running), held)


def _takes_memory(pid: int) -> bool:
    """Tell whether a process still has memory: one that waits to be buried has none."""
    return bool(environment_of(pid))


def _visible_gpus(pid: int, uuids: list[str]) -> list[str]:
    """Return which of these GPUs a process was given."""
    values = [each for each in environment_of(pid) if each.startswith(_VARIABLE)]
    given = values[0].removeprefix(_VARIABLE).decode().split(",") if values else []
    return [uuid for uuid in uuids if uuid in given]


def _model_of(pid: int) -> str:
    """Return the model file in a process's arguments, "" without one."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    pairs = itertools.pairwise(words)
    return next((file for option, file in pairs if option in {"-m", "--model"}), "")


def _size_of(pid: int, file: str) -> int:
    """Return the size of a file as a process sees it, 0 when it is not there."""
    try:
        return Path(f"/proc/{pid}/root", file.lstrip("/")).stat().st_size
    except OSError:
        return 0


def _pid_in_its_host(pid: int) -> int:
    """Return the pid that a process has where it runs (NSpid of proc(5))."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return pid
    (line,) = [each for each in lines if each.startswith("NSpid:")]
    return int(line.split()[-1])
