"""The rows of the table: what is measured, against which goals, with which verdict; pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from tests.bench.samples import Samples


@dataclass(frozen=True, slots=True)
class Goal:
    """Below (or above) which value a figure is fit, good, or as good as can be."""

    must: float
    target: float
    moonshot: float
    at_least: bool = False

    def verdict(self, value: float) -> str:
        """Return the highest goal that the value meets."""
        for name in ("moonshot", "target", "must"):
            bound: float = getattr(self, name)
            if (value >= bound) if self.at_least else (value <= bound):
                return name
        return "MISSED"

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {self.must:g} / {self.target:g} / {self.moonshot:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One row in one column: the figures, what the goal is compared with, and its spread."""

    text: str
    judged: Sequence[float]
    verdict: str


Figures = Callable[[Samples, str], tuple[str, Sequence[float]]]
"""Returns, for a column's suffix, the measured values as text and what the goal is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measure."""

    number: str
    title: str
    figures: Figures
    goal: Goal | None = None

    def outcome(self, samples: Samples, column: str) -> Outcome | None:
        """Return what came out in a column, None when it was not measured there."""
        text, judged = self.figures(samples, f"@{column}")
        if not text:
            return None
        verdict = self.goal.verdict(median(judged)) if self.goal and judged else ""
        return Outcome(text=text, judged=judged, verdict=verdict)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratios of two targets round by round; rounds that only one has are left out."""
    return [a / b for a, b in zip(ours, theirs, strict=False) if b]


def added(ours: Sequence[float], theirs: Sequence[float], direct: Sequence[float]) -> list[float]:
    """Return the ratios of what two targets add to the direct way, round by round."""
    triples = zip(ours, theirs, direct, strict=False)
    return [(a - c) / (b - c) for a, b, c in triples if b > c]


def compared(
    scenario: str, key: str, ours: str, theirs: str, unit: str, share: float = 1
) -> Figures:
    """Compare a figure of two targets; `share` multiplies the other's. Columns have their own."""

    def figures(samples: Samples, suffix: str) -> tuple[str, Sequence[float]]:
        mine = samples.values(ours + suffix, scenario, key)
        if theirs in ("nginx", "vllm-router"):
            other = [share * each for each in samples.values(theirs, scenario, key)]
        else:
            other = [share * each for each in samples.values(theirs + suffix, scenario, key)]
        found = ratios(mine, other)
        if not found:
            return "", ()
        return f"{shown(median(mine))} to {shown(median(other))} {unit}", found

    return figures


def added_latency(key: str) -> Figures:
    """Compare what gateway and nginx add to the time of a request on one core."""

    def figures(samples: Samples, suffix: str) -> tuple[str, Sequence[float]]:
        mine, nginx, direct = (
            samples.values(target, "latency", key)
            for target in (f"gateway{suffix}", "nginx", "direct")
        )
        found = added(mine, nginx, direct)
        if not found:
            return "", ()
        values = " / ".join(shown(median(each)) for each in (mine, nginx, direct))
        return f"{values} us (gateway / nginx / direct)", found

    return figures


def plain(target: str, scenario: str, key: str, unit: str) -> Figures:
    """Show a figure by itself."""

    def figures(samples: Samples, suffix: str) -> tuple[str, Sequence[float]]:
        found = samples.values(target + suffix, scenario, key)
        return (f"{shown(median(found))} {unit}", found) if found else ("", ())

    return figures


def listed(target: str, scenario: str, keys: Sequence[tuple[str, str]]) -> Figures:
    """Show several figures of one scenario; keys come with what to write after the figure."""

    def figures(samples: Samples, suffix: str) -> tuple[str, Sequence[float]]:
        parts = [
            f"{shown(median(found))} {words}"
            for key, words in keys
            if (found := samples.values(target + suffix, scenario, key))
        ]
        return ", ".join(parts), ()

    return figures


def shown(value: float) -> str:
    """Return a figure with as many digits as it is good for."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


CPU: Final = "cpu_us_per_request"
PER_CPU: Final = Goal(2.5, 1.9, 1.4)
VLLM: Final = Goal(0.7, 0.47, 0.35)
LEAVING: Final = Goal(50, 5, 1)

ROWS: Final = (
    Row(
        number="1a",
        title="CPU per request, 32 clients, to nginx",
        figures=compared("request", CPU, "gateway", "nginx", "us"),
        goal=PER_CPU,
    ),
    Row(
        number="1b",
        title="CPU per request, 256 clients, to nginx",
        figures=compared("request256", CPU, "gateway", "nginx", "us"),
        goal=PER_CPU,
    ),
    Row(
        number="2a",
        title="CPU per request, 32 clients, to vllm-router",
        figures=compared("request", CPU, "gateway", "vllm-router", "us"),
        goal=VLLM,
    ),
    Row(
        number="2b",
        title="CPU per request, 256 clients, to vllm-router",
        figures=compared("request256", CPU, "gateway", "vllm-router", "us"),
        goal=VLLM,
    ),
    Row(
        number="3",
        title="CPU per request, 64 KiB prompt, to nginx",
        figures=compared("prompt", CPU, "gateway", "nginx", "us"),
        goal=Goal(2.5, 1.8, 1.5),
    ),
    Row(
        number="4a",
        title="Added latency on one core, p50, to nginx's",
        figures=added_latency("p50_us"),
        goal=Goal(2.5, 1.6, 1.3),
    ),
    Row(
        number="4b",
        title="Added latency on one core, p99, to nginx's",
        figures=added_latency("p99_us"),
        goal=Goal(2.5, 1.5, 1.2),
    ),
    Row(
        number="5",
        title="CPU per event, 64 streams of 100 events/s, to nginx",
        figures=compared("paced", "cpu_us_per_event", "gateway", "nginx", "us"),
        goal=Goal(1.5, 1.1, 1.0),
    ),
    Row(
        number="6",
        title="Events per second of CPU, 64 streams without pause, to nginx",
        figures=compared("flood", "events_per_cpu_s", "gateway", "nginx", "/s"),
        goal=Goal(0.8, 1.1, 1.4, at_least=True),
    ),
    Row(
        number="7a",
        title="Memory per open stream, 1,000 open",
        figures=plain("gateway", "streams-1000", "kib_per_stream", "KiB"),
        goal=Goal(15, 8, 4.5),
    ),
    Row(
        number="7b",
        title="Memory of an idle gateway",
        figures=plain("chain", "idle", "gateway_mib", "MiB"),
        goal=Goal(60, 40, 28),
    ),
    Row(
        number="7c",
        title="Memory of an idle agent, rolemesh-llama",
        figures=listed(
            "chain", "idle", (("agent_mib", "MiB agent"), ("llama_mib", "MiB rolemesh-llama"))
        ),
    ),
    Row(
        number="8a",
        title="Client gone before the head: upstream closed, p99",
        figures=plain("gateway", "leave-head", "p99_ms", "ms"),
        goal=LEAVING,
    ),
    Row(
        number="8b",
        title="Client gone before the first byte: upstream closed, p99",
        figures=plain("gateway", "leave-body", "p99_ms", "ms"),
        goal=LEAVING,
    ),
    Row(
        number="8c",
        title="Client gone in the stream: upstream closed, p99",
        figures=plain("gateway", "leave-stream", "p99_ms", "ms"),
        goal=LEAVING,
    ),
    Row(
        number="8d",
        title="Client gone while a plain answer is waited for: upstream closed, p99",
        figures=plain("gateway", "leave-plain", "p99_ms", "ms"),
        goal=LEAVING,
    ),
    Row(
        number="9",
        title="Growth per client that stopped reading",
        figures=plain("gateway", "stuck", "kib_per_reader", "KiB"),
        goal=Goal(2048, 256, 128),
    ),
    Row(
        number="10a",
        title="CPU per request of gateway and agent, answer of 1 token, to twice nginx",
        figures=compared("request", CPU, "chain", "nginx", "us", share=2),
        goal=PER_CPU,
    ),
    Row(
        number="10b",
        title="CPU per request of gateway and agent, answer of 40 tokens, to twice nginx",
        figures=compared("answer", CPU, "chain", "nginx", "us", share=2),
    ),
    Row(
        number="11",
        title="CPU per request with 500 nodes of 8 instances, to 1 node",
        figures=compared("nodes", CPU, "nodes-500", "nodes-1", "us"),
        goal=Goal(1.3, 1.1, 1.0),
    ),
    Row(
        number="12a",
        title="CPU time from start to READY, gateway",
        figures=plain("gateway", "start", "cpu_s", "s"),
        goal=Goal(1, 0.5, 0.25),
    ),
    Row(
        number="12b",
        title="CPU time from start to READY, agent",
        figures=plain("agent", "start", "cpu_s", "s"),
        goal=Goal(1, 0.5, 0.25),
    ),
    Row(
        number="12c",
        title="Wall time to READY, gateway",
        figures=listed("gateway", "start", (("wall_s", "s"),)),
    ),
    Row(
        number="12d",
        title="Wall time to READY, agent",
        figures=listed("agent", "start", (("wall_s", "s"),)),
    ),
    Row(
        number="12e",
        title="Start to READY, rolemesh-llama",
        figures=listed("llama", "start", (("cpu_s", "s CPU"), ("wall_s", "s wall"))),
    ),
    Row(
        number="13a",
        title="A quiet minute: gateway",
        figures=listed(
            "chain", "idle", (("gateway_switches", "wake-ups"), ("gateway_cpu_ms", "ms CPU"))
        ),
    ),
    Row(
        number="13b",
        title="A quiet minute: agent",
        figures=listed(
            "chain", "idle", (("agent_switches", "wake-ups"), ("agent_cpu_ms", "ms CPU"))
        ),
    ),
    Row(
        number="13c",
        title="A quiet minute: rolemesh-llama",
        figures=listed(
            "chain", "idle", (("llama_switches", "wake-ups"), ("llama_cpu_ms", "ms CPU"))
        ),
    ),
    Row(
        number="14",
        title="Streams open at once, all complete",
        figures=plain("gateway", "streams-most", "streams", "streams"),
        goal=Goal(2000, 9000, 25000, at_least=True),
    ),
    Row(
        number="14b",
        title="Memory with them",
        figures=listed(
            "gateway",
            "streams-most",
            (("rss_mib", "MiB"), ("kib_per_stream", "KiB per stream")),
        ),
    ),
)
