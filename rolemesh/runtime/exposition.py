"""Metrics as text: the Prometheus exposition format, version 0.0.4; pure.

https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Sample(NamedTuple):
    """One value of a family; `text` follows the family's name: a suffix, and labels in braces."""

    value: float
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """All values of one name. `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    help: str
    samples: Iterable[Sample]

    def lines(self) -> Iterator[str]:
        """Yield its lines; a family without samples has none."""
        name, head = self.name, f"# HELP {self.name} {self.help}\n# TYPE {self.name} {self.kind}\n"
        for value, text in self.samples:
            yield f"{head}{name}{text} {_number(value)}\n"
            head = ""


def labelled(value: float, labels: Mapping[str, str]) -> Sample:
    """Return a value with labels."""
    return Sample(value, "{" + _pairs(labels) + "}")


def histogram(
    labels: Mapping[str, str], bounds: tuple[float, ...], buckets: Iterable[int], total: float
) -> Iterable[Sample]:
    """Yield the samples of one histogram; there must be a label.

    `buckets` count what lies between a bound and the one before, and, one more, what lies above
    all; `total` is the sum of all values.
    """
    count, pairs = 0, _pairs(labels)
    for bound, number in zip(_bound_texts(bounds), buckets, strict=True):
        count += number
        yield Sample(count, f'_bucket{{{pairs},le="{bound}"}}')
    yield Sample(total, f"_sum{{{pairs}}}")
    yield Sample(count, f"_count{{{pairs}}}")


@cache
def _bound_texts(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return (*map(_number, bounds), "+Inf")


def exposition(families: Iterable[Family]) -> Iterator[str]:
    """Yield the text, a sample at a time: there may be many."""
    for family in families:
        yield from family.lines()


def _pairs(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.12g}"
