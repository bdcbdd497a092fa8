"""The table of a run, as Markdown."""

from collections.abc import Iterator, Sequence
from statistics import median

from tests.bench.goals import ROWS, Outcome, Row
from tests.bench.samples import Samples

NAMES = {
    "compiled": "newest, compiled",
    "newest": "newest dependencies",
    "debian12": "Debian 12",
}


def render(samples: Samples) -> str:
    """Return the table and what is to be said below it."""
    columns: Sequence[str] = samples.about["columns"]
    names = [NAMES[column] for column in columns]
    header = ["", "measure", "must / target / moonshot"]
    for name in names:
        header += [name, "ratio (spread)", "verdict"]
    lines = [_line(header), _line(["--:", "---", "---", *["---", "---", "---"] * len(names)])]
    for row in ROWS:
        cells = [cell for column in columns for cell in _cells(row.outcome(samples, column), row)]
        if any(cells):
            lines.append(_line([row.number, row.title, str(row.goal or ""), *cells]))
    return "\n".join((*lines, "", *_notes(samples)))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(outcome: Outcome | None, row: Row) -> Sequence[str]:
    if outcome is None:
        return ("", "", "")
    spread = ""
    if len(outcome.judged) > 0 and " to " in row.title:
        spread = f"{median(outcome.judged):.2f}"
    if len(outcome.judged) > 1:
        low, high = min(outcome.judged), max(outcome.judged)
        spread = f"{spread} ({low:.2f}..{high:.2f})".strip()
    verdict = f"**{outcome.verdict}**" if outcome.verdict == "MISSED" else outcome.verdict
    return (outcome.text, spread, verdict)


def _disturbance(samples: Samples) -> Iterator[str]:
    """Say what else the machine did, where that was noted."""
    others = [
        float(sample["others"])
        for scenarios in samples.measured.values()
        for measured in scenarios.values()
        for sample in measured
        if "others" in sample
    ]
    if others:
        yield (
            f"Other programs of the machine used {median(others):.2f} cores meanwhile, at most "
            f"{max(others):.2f}."
        )


def _notes(samples: Samples) -> Iterator[str]:
    about = samples.about
    yield f"{about['machine']}; {about['rounds']} rounds; {about['seconds']:.0f} s in all."
    yield about["journal"]
    yield from _disturbance(samples)
    if "debian12" not in about["columns"]:
        yield about["debian12"]
    if samples.errors:
        yield ""
        yield f"{len(samples.errors)} measurements FAILED:"
        yield from samples.errors
