"""Processes on chosen cores, and what the kernel says of them."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STOP_PATIENCE_S = 10.0


class BenchError(Exception):
    """The run cannot go on; the text is for the person who started it."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where: what is measured alone on `proxy`; server, clients and the rest elsewhere."""

    proxy: frozenset[int]
    backend: frozenset[int]
    load: frozenset[int]

    @classmethod
    def of_this_machine(cls) -> "Cores":
        """Return the plan for the cores this process may use; raises BenchError with one core."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            msg = "the benchmark needs two processor cores: one for what is measured alone"
            raise BenchError(msg)
        proxy, backend, load = (cores[0], cores[1], cores[2 if len(cores) > 2 else 1])
        return cls(frozenset({proxy}), frozenset({backend}), frozenset({load}))


@contextlib.contextmanager
def on_cores(cores: frozenset[int]) -> Iterator[None]:
    """Have what is started inside the block run on `cores` only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """A started program, in a session of its own; `stop` ends it and all it has started."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        cores: frozenset[int],
        log: Path,
        environment: Mapping[str, str] | None = None,
        journal: bool = False,
    ) -> None:
        """Start it; `journal`: its log file is to pass for the stream of the journal."""
        self.log = log
        with log.open("ab") as output, on_cores(cores):
            stat = os.fstat(output.fileno())
            stream = {"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"} if journal else {}
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **stream, **(environment or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process started first."""
        return self._process.pid

    def check(self) -> None:
        """Raise BenchError if it has ended."""
        if self._process.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            msg = f"{self._process.args!r} ended with status {self._process.returncode}:\n{tail}"
            raise BenchError(msg)

    def stop(self) -> None:
        """End it: SIGTERM first, SIGKILL for whatever is left of it."""
        family = process_tree(self.pid)
        self._process.terminate()
        try:
            self._process.wait(STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in family[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def until(condition: Callable[[], object], *, what: str, deadline_s: float) -> None:
    """Return once `condition` is true; raises BenchError after `deadline_s`."""
    end = time.monotonic() + deadline_s
    pause_s = 0.002
    while not condition():
        if time.monotonic() > end:
            msg = f"still not after {deadline_s:g} s: {what}"
            raise BenchError(msg)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.05)


def process_tree(pid: int) -> list[int]:
    """Return `pid` and all its descendants, itself first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = stat.read_text().rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def move(pid: int, cores: frozenset[int]) -> None:
    """Have a running process run on `cores` only, with all its threads."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


def cpu_seconds(pid: int) -> float:
    """Return the process's CPU time, by the kernel's clock of the whole process."""
    # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of the kernel's posix-timers.
    return time.clock_gettime((~pid << 3) | 2)


def rss_kib(pid: int) -> int:
    """Return the resident memory of a process in KiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Rss:\s+(\d+) kB", text, re.MULTILINE)
    assert found
    return int(found[1])


def voluntary_switches(pid: int) -> int:
    """Return how often the process's threads went to sleep, in all."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status.read_text(), re.MULTILINE)
        total += int(found[1]) if found else 0
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineUse:
    """Processor time since boot, all cores together, that a measurement did not get.

    `others_s` went to programs that are not descendants of this process, `stolen_s` to other
    machines of the host.
    """

    others_s: float
    stolen_s: float


def machine_use() -> MachineUse:
    """Return what others have used up to now; only differences mean anything."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, stolen = map(int, words[:8])
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    ended = os.times()
    ours_s = ended.children_user + ended.children_system
    for pid in process_tree(os.getpid()):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            ours_s += cpu_seconds(pid)
    return MachineUse(
        others_s=(user + nice + system + irq + softirq) / ticks_per_s - ours_s,
        stolen_s=stolen / ticks_per_s,
    )


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def get(port: int, path: str) -> bytes:
    """GET a document of a server on 127.0.0.1."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def answers(port: int, path: str = "/health", *, accepted: int = 200) -> bool:
    """Tell whether something on 127.0.0.1 answers there with status `accepted`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == accepted
    except OSError:
        return False
    finally:
        connection.close()
