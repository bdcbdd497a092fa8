"""What is measured once in a column: memory, leaving, stuck readers, idling, starting, many streams.

Each is an absolute figure that hardly depends on the machine's mood, so one sample does; only the
start is repeated.
"""

import contextlib
import json
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tests.bench.host import (
    BenchError,
    Server,
    cpu_seconds,
    free_port,
    get,
    rss_kib,
    until,
    voluntary_switches,
)
from tests.bench.load import Load
from tests.bench.rolemesh import (
    MODEL_ID,
    Chain,
    Column,
    Daemons,
    gateway_configuration,
    node_configuration,
    write_configuration,
)
from tests.bench.samples import Sample, Samples
from tests.bench.workshop import Target, Workshop

STARTS: Final = 5
QUIET_S: Final = 15.0
STUCK_READERS: Final = 32
STUCK_S: Final = 6.0
LEAVERS: Final = 400
MOST_STREAMS: Final = 25_000
OPENED_PER_S: Final = 1000
EVENTS_PER_S: Final = 3000  # of all the streams together, so that the load stays the same
WARM_UP: Final = Load(connections=32, warmup_s=0.1, measure_s=0.5)

# Not all at once: each is to find the gateway idle.
LEAVER: Final = Load(connections=8, requests=LEAVERS, events=1000, ramp_us=6250)
LEAVING: Final[Mapping[str, Load]] = {
    "head": replace(LEAVER, leave="head"),
    "body": replace(LEAVER, leave="body"),
    "stream": replace(LEAVER, leave="stream", interval_us=2000),
    "plain": replace(LEAVER, leave="plain", events=-1, interval_us=20_000_000),
}


class Once:
    """Measures one column; `told` hears each result."""

    def __init__(
        self,
        workshop: Workshop,
        column: Column,
        samples: Samples,
        told: Callable[[str], None],
    ) -> None:
        self._workshop = workshop
        self._column = column
        self._daemons = Daemons(workshop, column)
        self._samples = samples
        self._told = told

    def run(self) -> None:
        """Measure everything."""
        for _ in range(STARTS):
            self._add("gateway", "start", self._start_gateway())
            self._add("agent", "start", self._start_agent())
            self._add("llama", "start", self._start_llama())
        with self._daemons.chain() as chain:
            self._add("chain", "idle", idle(chain))
        with self._daemons.gateway() as gateway:
            for phase in LEAVING:
                self._add("gateway", f"leave-{phase}", leaving(self._workshop, gateway, phase))
        with self._daemons.gateway() as gateway:
            self._add("gateway", "stuck", stuck_readers(self._workshop, gateway))
        with self._daemons.gateway() as gateway:
            self._add("gateway", "streams-1000", open_streams(self._workshop, gateway, 1000))
        with self._daemons.gateway() as gateway:
            most = open_streams(self._workshop, gateway, most_streams())
            self._add("gateway", "streams-most", most)

    def _add(self, target: str, scenario: str, sample: Sample) -> None:
        self._samples.add(self._column.target(target), scenario, sample)
        shown = " ".join(f"{key}={value}" for key, value in sample.items())
        self._told(f"{self._column.target(target)} {scenario} {shown}")

    # -- starting --------------------------------------------------------------------------

    def _start_gateway(self) -> Sample:
        configuration = gateway_configuration(self._workshop.backend_port)
        return self._start_daemon("rolemesh-gateway", configuration)

    def _start_agent(self) -> Sample:
        # A gateway that is not there: the agent's own start is what counts.
        configuration = node_configuration(self._workshop, free_port())
        return self._start_daemon("rolemesh-node-agent", configuration)

    def _start_daemon(self, program: str, configuration: Mapping[str, Any]) -> Sample:
        def start(environment: Mapping[str, str]) -> Server:
            return self._daemons.start(program, configuration, free_port(), environment)

        return time_to_ready(start, self._workshop.folder)

    def _start_llama(self) -> Sample:
        folder = self._daemons.folder("llama")
        write_configuration(folder, node_configuration(self._workshop, free_port()))
        parameters = folder / "cpu0.json"
        parameters.write_text(json.dumps({"model_id": MODEL_ID, "devices": [], "generation": 1}))

        def start(environment: Mapping[str, str]) -> Server:
            return Server(
                [
                    *(self._column.programs / "rolemesh-llama", "cpu0"),
                    *(f"--parameters={parameters}", f"--config-dir={folder}"),
                ],
                cores=self._workshop.cores.proxy,
                log=self._workshop.log(f"rolemesh-llama-{self._column.name}"),
                environment={
                    "RUNTIME_DIRECTORY": str(folder),
                    **self._column.environment,
                    **environment,
                },
                journal=self._workshop.journal.there,
            )

        return time_to_ready(start, self._workshop.folder)


def time_to_ready(start: Callable[[Mapping[str, str]], Server], folder: Path) -> Sample:
    """Start a program and return what it took until it said READY=1 (sd_notify(3))."""
    with _notify_socket(folder) as (path, heard):
        began = time.monotonic()
        server = start({"NOTIFY_SOCKET": path})
        try:

            def ready() -> bool:
                server.check()
                return b"READY=1" in heard()

            until(ready, what=f"READY=1; see {server.log}", deadline_s=30)
            cpu_s, wall_s = cpu_seconds(server.pid), time.monotonic() - began
        finally:
            server.stop()
    return {"cpu_s": round(cpu_s, 4), "wall_s": round(wall_s, 4)}


@contextlib.contextmanager
def _notify_socket(folder: Path) -> Iterator[tuple[str, Callable[[], list[bytes]]]]:
    """Yield a socket's path, and what returns the lines heard within a moment."""
    path = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(os.fspath(path))
        listener.settimeout(0.1)

        def heard() -> list[bytes]:
            try:
                return listener.recv(1 << 16).splitlines()
            except TimeoutError:
                return []

        try:
            yield str(path), heard
        finally:
            path.unlink()


# -- idling --------------------------------------------------------------------------------


def idle(chain: Chain) -> Sample:
    """Return what gateway, agent and rolemesh-llama use while nobody asks for anything."""
    pids = {"gateway": chain.gateway, "agent": chain.agent, "llama": chain.llama}
    before = {name: (voluntary_switches(pid), cpu_seconds(pid)) for name, pid in pids.items()}
    time.sleep(QUIET_S)
    sample: dict[str, object] = {}
    for name, pid in pids.items():
        switches = voluntary_switches(pid) - before[name][0]
        cpu_s = cpu_seconds(pid) - before[name][1]
        sample[f"{name}_switches"] = round(switches * 60 / QUIET_S)
        sample[f"{name}_cpu_ms"] = round(cpu_s * 1000 * 60 / QUIET_S, 1)
        sample[f"{name}_mib"] = round(rss_kib(pid) / 1024, 1)
    return sample


# -- clients that leave or get stuck -------------------------------------------------------


def leaving(workshop: Workshop, gateway: Target, phase: str) -> Sample:
    """Return how long the upstream's connection outlives the client's, in milliseconds."""
    get(workshop.backend_port, "/reset")
    result = workshop.measure(gateway, LEAVING[phase])
    if result.error:
        return {"error": result.error}
    try:
        until(
            lambda: not workshop.backend_stats()["active"],
            what="the upstream's connections of clients that left are closed",
            deadline_s=10,
        )
    except BenchError as err:
        return {"error": str(err)}
    lines = get(workshop.backend_port, "/closed").decode().splitlines()
    closed = {int(user): int(at) for user, at in map(str.split, lines)}
    left = dict(result.raw["left"])
    # On a busy machine some leave before their request has come so far.
    if len(closed) < len(left) / 2:
        return {"error": f"{len(left)} clients left, but only {len(closed)} of them upstream"}
    delays_ms = sorted((at - left[user]) / 1e6 for user, at in closed.items())
    return {
        "left": len(closed),
        "p50_ms": round(delays_ms[len(delays_ms) // 2], 3),
        "p99_ms": round(delays_ms[len(delays_ms) * 99 // 100], 3),
        "max_ms": round(delays_ms[-1], 3),
    }


def stuck_readers(workshop: Workshop, gateway: Target) -> Sample:
    """Return by how much memory grows for each client that stops reading a flood."""
    error = workshop.measure(gateway, WARM_UP).error
    pid = gateway.clocks[0]
    before = rss_kib(pid)
    load = Load(connections=STUCK_READERS, events=10**9, stuck=True, measure_s=STUCK_S)
    result, peak = workshop.measure_watched(gateway, load, lambda: rss_kib(pid))
    error = error or result.error
    if not error and result.raw["stuck"] != STUCK_READERS:
        error = f"of {STUCK_READERS} streams only {result.raw['stuck']} began"
    if error:
        return {"error": error}
    return {"readers": STUCK_READERS, "kib_per_reader": round((peak - before) / STUCK_READERS, 1)}


# -- open streams --------------------------------------------------------------------------


def most_streams() -> int:
    """Return how many streams one process may have open by its limit of files: two for each."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return min(MOST_STREAMS, (limit - 2000) // 2)


def open_streams(workshop: Workshop, gateway: Target, count: int) -> Sample:
    """Return what so many streams cost that are all open at once, and whether all completed."""
    error = workshop.measure(gateway, WARM_UP).error
    pid = gateway.clocks[0]
    get(workshop.backend_port, "/reset")
    interval_us = max(250_000, count * 1_000_000 // EVENTS_PER_S)
    opening_s = count / OPENED_PER_S
    load = Load(
        connections=count,
        requests=count,
        ramp_us=1_000_000 // OPENED_PER_S,
        interval_us=interval_us,
        # So many that the first is still open when the last is, also on a busy machine.
        events=int((1.5 * opening_s + 10) * 1_000_000 / interval_us) + 1,
        measure_s=3 * opening_s + 60,
    )
    before = rss_kib(pid)
    result, peak = workshop.measure_watched(gateway, load, lambda: rss_kib(pid))
    error = error or result.error
    at_once = workshop.backend_stats()["peak_active"]
    if not error and at_once != count:
        error = f"of {count} streams only {at_once} were open at once"
    if error:
        return {"error": error}
    return {
        "streams": count,
        "rss_mib": round(peak / 1024, 1),
        "kib_per_stream": round((peak - before) / count, 2),
    }
