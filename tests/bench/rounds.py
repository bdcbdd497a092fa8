"""What is measured round by round: in each round every target has its turn with every scenario.

Ratios are taken within a round, where the figures lie seconds apart: the speed of a shared machine
drifts by more than what is to be seen.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from tests.bench.fleet import gateway_with_nodes
from tests.bench.host import machine_use
from tests.bench.load import Load, LoadResult
from tests.bench.rivals import nginx, vllm_router
from tests.bench.rolemesh import Column, Daemons
from tests.bench.samples import Samples
from tests.bench.workshop import Target, Workshop

MANY_NODES: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A load, and who is measured under it; `same_core`: together with clients and server."""

    name: str
    load: Load
    targets: tuple[str, ...]
    same_core: bool = False


SCENARIOS: Final = (
    Scenario(
        name="request",
        load=Load(connections=32, warmup_s=0.3, measure_s=2.5, answer_tokens=1),
        targets=("nginx", "vllm-router", "gateway", "chain"),
    ),
    Scenario(
        name="answer",
        load=Load(connections=32, warmup_s=0.3, measure_s=2.5),
        targets=("nginx", "chain"),
    ),
    Scenario(
        name="request256",
        load=Load(connections=256, warmup_s=0.5, measure_s=2.5),
        targets=("nginx", "vllm-router", "gateway"),
    ),
    Scenario(
        name="prompt",
        load=Load(connections=8, prompt_bytes=65536, warmup_s=0.3, measure_s=2.5),
        targets=("nginx", "gateway"),
    ),
    Scenario(
        name="latency",
        load=Load(connections=1, warmup_s=0.3, measure_s=2.5),
        targets=("direct", "nginx", "gateway"),
        same_core=True,
    ),
    Scenario(
        name="paced",
        load=Load(connections=64, events=100, interval_us=10_000, warmup_s=0.6, measure_s=3.0),
        targets=("nginx", "gateway"),
    ),
    Scenario(
        name="flood",
        load=Load(connections=64, events=500, warmup_s=0.4, measure_s=2.5),
        targets=("nginx", "gateway"),
    ),
    Scenario(
        name="nodes",
        load=Load(connections=32, warmup_s=0.5, measure_s=2.5),
        targets=("nodes-1", f"nodes-{MANY_NODES}"),
    ),
)

RIVALS: Final[Mapping[str, Callable[[Workshop], contextlib.AbstractContextManager[Target]]]] = {
    "nginx": nginx,
    "vllm-router": vllm_router,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run measures."""

    rounds: int
    scenarios: Sequence[Scenario]
    targets: frozenset[str]
    columns: Sequence[Column]
    once: bool

    def has(self, name: str) -> bool:
        """Tell whether a target is wanted by any scenario."""
        return name in self.targets and any(name in each.targets for each in self.scenarios)

    def quicker(self, factor: float) -> "Plan":
        """Return the plan with shorter measurements."""
        scenarios = [
            replace(each, load=replace(each.load, measure_s=each.load.measure_s * factor))
            for each in self.scenarios
        ]
        return replace(self, scenarios=scenarios)


def run_rounds(
    workshop: Workshop, plan: Plan, samples: Samples, told: Callable[[str], None]
) -> None:
    """Measure everything that the plan has, round by round."""
    with contextlib.ExitStack() as stack:
        rivals = [
            stack.enter_context(start(workshop)) for name, start in RIVALS.items() if plan.has(name)
        ]
        starters = dict(_starters(workshop, plan, rivals))
        for number in range(1, plan.rounds + 1):
            for scenario in plan.scenarios:
                names = [name for name in starters if _bare(name) in scenario.targets]
                # Whoever is first is not always the same.
                turn = number % max(1, len(names))
                for name in (*names[turn:], *names[:turn]):
                    with starters[name]() as target:
                        sample = _measure(workshop, scenario, target)
                    samples.add(name, scenario.name, sample)
                    told(f"round {number}: {name} {scenario.name} {_brief(sample)}")


Starter = Callable[[], contextlib.AbstractContextManager[Target]]


def _starters(
    workshop: Workshop, plan: Plan, rivals: Sequence[Target]
) -> Iterator[tuple[str, Starter]]:
    """Yield how each target is had for one measurement.

    Rivals run all the time. Gateways and agents are started anew, so that none disturbs the other
    and the chance of how a process lies in memory is in the spread.
    """
    direct = Target(name="direct", port=workshop.backend_port)
    for target in (*rivals, *([direct] if plan.has("direct") else [])):
        yield target.name, partial(_running_already, target)
    for column in plan.columns:
        daemons = Daemons(workshop, column)
        ours: Mapping[str, Starter] = {
            "gateway": daemons.gateway,
            "chain": daemons.chain_target,
            **{
                f"nodes-{count}": partial(gateway_with_nodes, daemons, count, workshop.backend_port)
                for count in (1, MANY_NODES)
            },
        }
        for name, start in ours.items():
            if plan.has(name):
                yield column.target(name), start


def _running_already(target: Target) -> contextlib.AbstractContextManager[Target]:
    return contextlib.nullcontext(target)


def _bare(target: str) -> str:
    return target.partition("@")[0]


def _measure(workshop: Workshop, scenario: Scenario, target: Target) -> dict[str, object]:
    before, began = machine_use(), time.monotonic()
    if scenario.same_core:
        with workshop.backend_on_proxy_core():
            result = workshop.measure(target, scenario.load, same_core=True)
    else:
        result = workshop.measure(target, scenario.load)
    after, seconds = machine_use(), time.monotonic() - began
    return {
        **sample_of(result),
        # The kernel counts ticks for all and nanoseconds for each: a little less than 0 is 0.
        "others": round(max(0.0, after.others_s - before.others_s) / seconds, 3),
        "stolen": round((after.stolen_s - before.stolen_s) / seconds, 3),
    }


def sample_of(result: LoadResult) -> dict[str, object]:
    """Return the figures of a load's result that are kept."""
    raw = result.raw
    if result.error:
        return {"error": result.error}
    sample: dict[str, object] = {
        "started": result.started,
        "requests": raw["requests"],
        "seconds": raw["seconds"],
        "requests_per_s": raw["requests"] / raw["seconds"],
        "p50_us": raw["latency_us"]["p50"],
        "p99_us": raw["latency_us"]["p99"],
        "cpu_s": result.cpu_s,
        "cpu_us_per_request": result.cpu_us_per_request,
    }
    if raw["events"]:
        sample |= {
            "events": raw["events"],
            "events_per_s": raw["events"] / raw["seconds"],
            "events_per_cpu_s": raw["events"] / (result.cpu_s or 1e-9),
            "cpu_us_per_event": result.cpu_us_per_event,
            "delay_p50_us": raw["delay_us"]["p50"],
            "delay_p99_us": raw["delay_us"]["p99"],
        }
    return sample


def _brief(sample: Mapping[str, object]) -> str:
    if "error" in sample:
        return f"FAILED: {sample['error']}"
    shown = ("requests_per_s", "cpu_us_per_request", "cpu_us_per_event", "p50_us", "others")
    return " ".join(f"{key}={sample[key]:.4g}" for key in shown if key in sample)
