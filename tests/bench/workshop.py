"""Where a run takes place: cores, compiled programs, the fake llama-server, the journal."""

import contextlib
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench.host import BenchError, Cores, Server, answers, free_port, get, move, until
from tests.bench.load import Load, LoadResult, LoadRun

SOURCES = Path(__file__).parent
NAMESPACE_VARIABLE = "ROLEMESH_BENCH_NAMESPACE"
JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
QUEUE_LENGTH = Path("/proc/sys/net/unix/max_dgram_qlen")
SYSTEMD_QUEUE_LENGTH = 512  # systemd sets it at boot
LOOK_S = 0.1
COUNTS = struct.Struct("3Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Something that answers chat completions.

    `clocks` are the processes whose CPU time counts; `recorded_by` those of gateway and agent that
    write a journal record of each request.
    """

    name: str
    port: int
    model: str = "fake-model"
    clocks: tuple[int, ...] = ()
    recorded_by: tuple[str, ...] = ()


class Journal:
    """What journal_sink.c has counted; one that is not there counts nothing."""

    def __init__(self, counts: Path | None) -> None:
        self._counts = counts

    @property
    def there(self) -> bool:
        """Whether records go to a journal."""
        return self._counts is not None

    def requests(self) -> Mapping[str, int]:
        """Return how many records of requests there are, by who wrote them."""
        if self._counts is None:
            return {}
        gateway, agent, _ = COUNTS.unpack(self._counts.read_bytes())
        return {"gateway": gateway, "agent": agent}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What every measurement needs."""

    cores: Cores
    folder: Path
    loadgen: Path
    backend: Path
    backend_server: Server
    backend_port: int
    journal: Journal

    def log(self, name: str) -> Path:
        """Return where a program writes its log."""
        return self.folder / f"{name}.log"

    def start_load(self, target: Target, load: Load, *, same_core: bool = False) -> LoadRun:
        """Start a load generator against a target."""
        cores = self.cores.proxy if same_core else self.cores.load
        return LoadRun(
            self.loadgen,
            load,
            port=target.port,
            model=target.model,
            clocks=target.clocks,
            cores=cores,
        )

    @contextlib.contextmanager
    def backend_on_proxy_core(self) -> Iterator[None]:
        """Have the fake llama-server share the core of what is measured."""
        move(self.backend_server.pid, self.cores.proxy)
        try:
            yield
        finally:
            move(self.backend_server.pid, self.cores.backend)

    def backend_stats(self) -> Mapping[str, int]:
        """Return the fake llama-server's counters."""
        stats: dict[str, int] = json.loads(get(self.backend_port, "/stats"))
        return stats

    def measure(self, target: Target, load: Load, *, same_core: bool = False) -> LoadResult:
        """Load a target to the end and return what came of it."""
        return self._recorded(
            target, lambda: self.start_load(target, load, same_core=same_core).result()
        )

    def measure_watched(
        self, target: Target, load: Load, look: Callable[[], int]
    ) -> tuple[LoadResult, int]:
        """Load a target to the end; returns too the largest value that `look` gave meanwhile."""
        largest = look()

        def run() -> LoadResult:
            nonlocal largest
            under_way = self.start_load(target, load)
            while under_way.running:
                largest = max(largest, look())
                time.sleep(LOOK_S)
            return under_way.result()

        return self._recorded(target, run), largest

    def _recorded(self, target: Target, run: Callable[[], LoadResult]) -> LoadResult:
        """Have `run` load a target; the result has an error if the journal misses a record."""
        before = self.journal.requests()
        result = run()
        if not self.journal.there or not target.recorded_by or result.error:
            return result
        wanted = {name: before[name] + result.started for name in target.recorded_by}

        def complete() -> bool:
            found = self.journal.requests()
            return all(found[name] == wanted[name] for name in wanted)

        try:
            until(complete, what="a record of each request", deadline_s=10)
        except BenchError:
            found = self.journal.requests()
            counts = {name: found[name] - before[name] for name in wanted}
            error = f"{result.started} requests, but the journal has records of {counts}"
            return LoadResult(raw={**result.raw, "errors": 1, "first_error": error})
        return result


def enter_namespace() -> bool:
    """Begin again with a /run of our own, so that our journal is nobody else's; needs root.

    Returns whether there is one; only then records can go to a journal.
    """
    os.environ.pop("JOURNAL_STREAM", None)
    unshare = ("unshare", "--mount", "--propagation", "private")
    if os.environ.pop(NAMESPACE_VARIABLE, None) is None:
        if os.geteuid() != 0 or subprocess.run([*unshare, "true"], check=False).returncode:
            return False
        command = [*unshare, sys.executable, "-m", "tests.bench", *sys.argv[1:]]
        os.execvpe(command[0], command, {**os.environ, NAMESPACE_VARIABLE: "1"})
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    JOURNAL_SOCKET.parent.mkdir(parents=True)
    return True


@contextlib.contextmanager
def open_workshop(*, with_journal: bool) -> Iterator[Workshop]:
    """Compile the programs and start what every measurement needs."""
    cores = Cores.of_this_machine()
    os.sched_setaffinity(0, cores.load)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as stack:
        # A short path: UNIX sockets lie below it.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rmb-", dir="/tmp")))
        programs = {name: _compile(name, folder) for name in ("backend", "loadgen", "journal_sink")}
        port = free_port()
        backend = Server(
            [programs["backend"], "--port", str(port)],
            cores=cores.backend,
            log=folder / "backend.log",
        )
        stack.callback(backend.stop)
        until(lambda: answers(port), what="the fake llama-server answers", deadline_s=10)
        journal = Journal(None)
        if with_journal:
            journal = stack.enter_context(_journal(programs["journal_sink"], folder, cores))
        yield Workshop(
            cores=cores,
            folder=folder,
            loadgen=programs["loadgen"],
            backend=programs["backend"],
            backend_server=backend,
            backend_port=port,
            journal=journal,
        )


def _compile(name: str, folder: Path) -> Path:
    program = folder / name
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        msg = "no C compiler (gcc); run it by `make bench`, which installs what it needs"
        raise BenchError(msg)
    source = SOURCES / f"{name}.c"
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", program, source], check=True)
    return program


@contextlib.contextmanager
def _journal(program: Path, folder: Path, cores: Cores) -> Iterator[Journal]:
    """Listen at the journal's socket, which is in our own /run."""
    counts = folder / "journal.counts"
    before = QUEUE_LENGTH.read_text()
    try:
        if int(before) < SYSTEMD_QUEUE_LENGTH:
            QUEUE_LENGTH.write_text(str(SYSTEMD_QUEUE_LENGTH))
        command = (program, str(JOURNAL_SOCKET), str(counts))
        sink = Server(command, cores=cores.load, log=folder / "journal.log")
        try:
            until(JOURNAL_SOCKET.is_socket, what="the journal's socket is there", deadline_s=10)
        except BaseException:
            sink.stop()
            raise
    finally:
        QUEUE_LENGTH.write_text(before)
    try:
        yield Journal(counts)
    finally:
        sink.stop()
