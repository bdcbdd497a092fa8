"""One run of the load generator (loadgen.c)."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.host import BenchError, on_cores

KEY = "sk-bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send; the fields are the options of loadgen.c, where they are described."""

    connections: int = 1
    requests: int = 0
    warmup_s: float = 0.0
    measure_s: float = 10.0
    prompt_bytes: int = 1024
    answer_tokens: int = 40
    ramp_us: int = 0
    events: int = -1
    interval_us: int = 0
    leave: str = ""
    stuck: bool = False

    def options(self) -> list[str]:
        """Return the command line's options."""
        numbers: Mapping[str, float] = {
            "-c": self.connections,
            "-n": self.requests,
            "-w": self.warmup_s,
            "-t": self.measure_s,
            "-b": self.prompt_bytes,
            "-a": self.answer_tokens,
            "-r": self.ramp_us,
            "-s": self.events,
            "-i": self.interval_us,
        }
        options = [text for name, value in numbers.items() for text in (name, str(value))]
        options += ["-L", self.leave] if self.leave else []
        return [*options, *(["-S"] if self.stuck else [])]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What loadgen printed, unchanged in `raw`; times are in seconds unless named otherwise."""

    raw: Mapping[str, Any]

    @property
    def started(self) -> int:
        """How many requests were sent, warm-up and leaving included."""
        return int(self.raw["started"])

    @property
    def error(self) -> str:
        """What went wrong, "" if nothing did."""
        if not self.raw["errors"]:
            return ""
        return f"{self.raw['errors']} of {self.started} failed, first: {self.raw['first_error']}"

    @property
    def cpu_s(self) -> float:
        """CPU time of the processes asked about, within the measurement."""
        return float(sum(self.raw["cpu_s"]))

    @property
    def cpu_us_per_request(self) -> float:
        """CPU time per request in microseconds."""
        return self.cpu_s * 1e6 / max(1, int(self.raw["requests"]))

    @property
    def cpu_us_per_event(self) -> float:
        """CPU time per content event in microseconds."""
        return self.cpu_s * 1e6 / max(1, int(self.raw["events"]))


class LoadRun:
    """A load generator under way."""

    def __init__(
        self,
        program: Path,
        load: Load,
        *,
        port: int,
        model: str,
        clocks: Sequence[int],
        cores: frozenset[int],
    ) -> None:
        options = ["-p", str(port), "-k", KEY, "-m", model, *load.options()]
        options += [text for pid in clocks for text in ("-C", str(pid))]
        with on_cores(cores):
            self._process = subprocess.Popen(
                [program, *options], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
            )

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def result(self) -> LoadResult:
        """Wait for its end; raises BenchError when it gives no result."""
        output, _ = self._process.communicate()
        if self._process.returncode:
            msg = f"{self._process.args!r} ended with status {self._process.returncode}"
            raise BenchError(msg)
        return LoadResult(raw=json.loads(output))

    def stop(self) -> None:
        """End it early, whatever it was doing."""
        self._process.kill()
        self._process.communicate()
