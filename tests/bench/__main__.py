"""RoleMesh beside nginx and vllm-router: one run, one table (docs/performance.md).

Exit status: 0 when every request of every measurement was answered, whatever the verdicts; 1 when
one was not, or when something that the run needs is missing.
"""

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.host import BenchError
from tests.bench.once import Once
from tests.bench.rivals import nginx_program, vllm_router_python
from tests.bench.rolemesh import NEWEST, Column, compiled, debian12, is_debian12
from tests.bench.rounds import SCENARIOS, Plan, run_rounds
from tests.bench.samples import Samples
from tests.bench.table import NAMES, render
from tests.bench.workshop import Workshop, enter_namespace, open_workshop

TARGETS = sorted({target for scenario in SCENARIOS for target in scenario.targets})
QUICK = 0.7


def main() -> int:
    """Run the benchmark; returns its exit status."""
    options = parse(sys.argv[1:])
    if options.show:
        sys.stdout.write(f"{render(Samples.load(options.show))}\n")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        samples = run(options, with_journal=enter_namespace())
    except KeyboardInterrupt:
        return 130
    except BenchError as err:
        _say(f"bench: {err}")
        return 1
    if options.json:
        samples.save(options.json)
    sys.stdout.write(f"{render(samples)}\n")
    return 1 if samples.errors else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--only", metavar="TARGET,...", help=f"only these of {', '.join(TARGETS)}")
    names = [*(each.name for each in SCENARIOS), "once"]
    parser.add_argument(
        "--scenarios",
        metavar="NAME,...",
        help=f"only these of {', '.join(names)}; once: what is no load repeated in rounds",
    )
    parser.add_argument("--columns", metavar="NAME,...", help=f"only these of {', '.join(NAMES)}")
    parser.add_argument(
        "--quick", action="store_true", help="shorter; only with the checkout's own dependencies"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="save all that was measured")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of a saved run")
    options = parser.parse_args(arguments)
    options.only = _names(parser, options.only, TARGETS)
    options.columns = _names(parser, options.columns, list(NAMES))
    options.scenarios = _names(parser, options.scenarios, names)
    return options


def _names(
    parser: argparse.ArgumentParser, given: str | None, known: Sequence[str]
) -> Sequence[str]:
    if given is None:
        return known
    names = given.split(",")
    unknown = ", ".join(set(names) - set(known))
    if unknown:
        parser.error(f"unknown: {unknown}; known: {', '.join(known)}")
    return names


def run(options: argparse.Namespace, *, with_journal: bool) -> Samples:
    """Measure; raises BenchError when something is missing."""
    began = time.monotonic()
    plan = make_plan(options)
    samples = Samples()
    with open_workshop(with_journal=with_journal) as workshop:
        run_rounds(workshop, plan, samples, _say)
        for column in plan.columns if plan.once else ():
            Once(workshop, column, samples, _say).run()
        samples.about = {**about(workshop, plan), "seconds": time.monotonic() - began}
    return samples


def make_plan(options: argparse.Namespace) -> Plan:
    """Return what to measure, once what that needs is known to be there."""
    plan = Plan(
        rounds=options.rounds,
        scenarios=[each for each in SCENARIOS if each.name in options.scenarios],
        targets=frozenset(options.only),
        columns=[*_columns(options)],
        once="once" in options.scenarios and "gateway" in options.only,
    )
    if plan.has("nginx"):
        nginx_program()
    if plan.has("vllm-router"):
        vllm_router_python()
    return plan.quicker(QUICK) if options.quick else plan


def _columns(options: argparse.Namespace) -> Iterator[Column]:
    if options.quick:
        yield NEWEST
        return
    if "compiled" in options.columns:
        yield compiled()
    if "newest" in options.columns:
        yield NEWEST
    if "debian12" in options.columns and is_debian12():
        yield debian12()


def about(workshop: Workshop, plan: Plan) -> dict[str, object]:
    """Describe machine and run, as far as it matters for reading the figures."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}",
        "rounds": plan.rounds,
        "columns": [column.name for column in plan.columns],
        "journal": "Each request was a record in the journal's own protocol, and all were counted."
        if workshop.journal.there
        else "No root here: records were lines in a file, not in the journal.",
        "debian12": "The column for Debian 12 was left out."
        if is_debian12()
        else "The column for Debian 12 needs Debian 12.",
    }


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
