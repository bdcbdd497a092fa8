"""How many requests there were, what became of them, and how long they took; since the start.

Requests are counted some hundred at a time (`RequestHistory`): sorting their times once costs less
than finding the bucket of each.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from rolemesh.runtime.request_history import FIELDS, WIDTH, Flat
from rolemesh.runtime.request_log import Labels

BOUNDS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
"""The buckets of every histogram, but for the last one, without a bound."""

NOBODY: Final = "-"
"""Stands for the alias of requests that named none there is, and for the node of those not sent."""

MAX_NAMES: Final = 1000
"""So many aliases, and nodes, are told apart; those that come later are counted as OTHERS."""

OTHERS: Final = "(others)"

CLIENT_LEFT: Final = 499

_BOUNDS_MS: Final = tuple(bound * 1000 for bound in BOUNDS_S)
_FEW: Final = 8
_QUEUE, _FIRST_BYTE, _TOTAL = map(FIELDS.index, ("queue_ms", "first_byte_ms", "total_ms"))
_STATUS, _ATTEMPTS = map(FIELDS.index, ("status", "attempts"))

_Times = list[float | None]


class Histogram:
    """How many values fell into each bucket; a value equal to a bound is below it."""

    __slots__ = ("buckets", "sum_ms")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.sum_ms = 0.0

    def add(self, values_ms: list[float]) -> None:
        """Count values; may sort them."""
        self.sum_ms += sum(values_ms)
        buckets = self.buckets
        if len(values_ms) < _FEW:
            for value in values_ms:
                buckets[bisect_left(_BOUNDS_MS, value)] += 1
            return
        values_ms.sort()
        before = 0
        for bucket, bound in enumerate(_BOUNDS_MS):
            until = bisect_right(values_ms, bound)
            buckets[bucket] += until - before
            before = until
        buckets[-1] += len(values_ms) - before


class AliasCounts:
    """What is known of the requests for one alias."""

    def __init__(self) -> None:
        self.queue = Histogram()
        self.first_byte = Histogram()
        self.total = Histogram()
        self.attempts = 0
        self.retries = 0
        self.fallbacks = 0
        """Requests that went on to a fallback; their labels name it."""

    def add_times(self, queue: _Times, first_byte: _Times, total: _Times) -> None:
        """Count how long requests took, in ms; None is left out."""
        self.queue.add(_known(queue))
        self.first_byte.add(_known(first_byte))
        self.total.add(_known(total))


def status_class(status: int) -> str:
    """Return `2xx` and the like; `499` stands alone: the client left."""
    return "499" if status == CLIENT_LEFT else f"{status // 100}xx"


class RequestCounts:
    """Counts requests by alias, node and status class."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        """By alias, node and status class."""
        self.refused: Counter[int] = Counter()
        """By status: those that were answered with an error and sent to nobody."""
        self.clients: Counter[str] = Counter()
        """By the name of the key."""
        self.aliases: defaultdict[str, AliasCounts] = defaultdict(AliasCounts)
        self._nodes: set[str] = set()

    def count(self, flat: Flat) -> None:
        """Count requests as RequestHistory gives them."""
        labels = flat[0::WIDTH]
        of_labels = {each: dict(each.values) for each in set(labels)}
        names = {each: self._names(values) for each, values in of_labels.items()}
        for (of, status, attempts), number in _count_ends(flat):
            alias, node = names[of]
            self.requests[alias, node, status_class(status)] += number
            self.clients[of_labels[of].get("client", NOBODY)] += number
            if "fallback" in of_labels[of]:
                self.aliases[alias].fallbacks += number
            self._count_attempts(alias, status, attempts or 0, number)
        columns = [flat[place::WIDTH] for place in (_QUEUE, _FIRST_BYTE, _TOTAL)]
        aliases = {alias for alias, _ in names.values()}
        if len(aliases) == 1:
            self.aliases[aliases.pop()].add_times(*columns)
            return
        times: defaultdict[str, _Times] = defaultdict(list)
        for of, queue, first_byte, total in zip(labels, *columns, strict=True):
            times[names[of][0]] += (queue, first_byte, total)
        for alias, values in times.items():
            self.aliases[alias].add_times(values[0::3], values[1::3], values[2::3])

    def _names(self, labels: Mapping[str, str]) -> tuple[str, str]:
        """Return alias and node of a request."""
        alias = _bounded(labels.get("alias", NOBODY), self.aliases)
        node = _bounded(labels.get("node", NOBODY), self._nodes)
        self._nodes.add(node)
        return alias, node

    def _count_attempts(self, alias: str, status: int, attempts: int, number: int) -> None:
        counts = self.aliases[alias]
        if attempts:
            counts.attempts += attempts * number
            counts.retries += (attempts - 1) * number
        elif status >= 400 and status != CLIENT_LEFT:
            self.refused[status] += number


def _count_ends(flat: Flat) -> Iterable[tuple[tuple[Labels, int, int | None], int]]:
    """Count requests by labels, status and attempts."""
    labels, statuses, attempts = (flat[place::WIDTH] for place in (0, _STATUS, _ATTEMPTS))
    status, tries = statuses[0], attempts[0]
    if statuses.count(status) == attempts.count(tries) == len(labels):
        # That is nearly always so, and costs a third.
        return [((of, status, tries), number) for of, number in Counter(labels).items()]
    return Counter(zip(labels, statuses, attempts, strict=True)).items()


def _bounded(name: str, known: Collection[str]) -> str:
    return name if name in known or len(known) < MAX_NAMES else OTHERS


def _known(values: _Times) -> list[float]:
    return [value for value in values if value is not None]
