"""Which candidates of a target may take a request, in which order, and why not the others; pure."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from rolemesh.gateway.routing_table import Candidate, Target

CandidateKey = tuple[str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is under way: slots in use by candidate, and candidates that said they are full."""

    in_flight: Mapping[CandidateKey, int]
    full: AbstractSet[CandidateKey] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A candidate that does not take this request, and why."""

    candidate: Candidate
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """`chosen` may take the request now, best first; `saturated` could once a slot is free."""

    chosen: tuple[Candidate, ...]
    saturated: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]


def select_candidates(
    target: Target, load: Load, *, cost: int, failed: AbstractSet[CandidateKey], rotation: int
) -> Selection:
    """Order the target's candidates for one request.

    1. A candidate that cannot answer, or has failed this request already, is out.
    2. One without `cost` free slots waits; alone it takes any request, however large.
    3. Warm before loading before cold; then the node's own preference; then the least loaded;
       among equals each in turn, by `rotation`.
    """
    chosen: list[Candidate] = []
    saturated: list[Candidate] = []
    rejected: list[Rejected] = []
    for candidate in target.candidates:
        if candidate.unusable:
            rejected.append(Rejected(candidate=candidate, why=candidate.unusable))
        elif candidate.key in failed:
            rejected.append(Rejected(candidate=candidate, why="failed this request"))
        elif _is_saturated(candidate, load, cost):
            saturated.append(candidate)
        else:
            chosen.append(candidate)
    if chosen:
        start = rotation % len(chosen)
        chosen = chosen[start:] + chosen[:start]
        chosen.sort(key=lambda candidate: _rank(candidate, load))
    return Selection(chosen=tuple(chosen), saturated=tuple(saturated), rejected=tuple(rejected))


def _is_saturated(candidate: Candidate, load: Load, cost: int) -> bool:
    if candidate.key in load.full:
        return True
    used = load.in_flight.get(candidate.key, 0)
    return candidate.slots is not None and used > 0 and used + cost > candidate.slots


def _rank(candidate: Candidate, load: Load) -> tuple[int, int, float]:
    used = load.in_flight.get(candidate.key, 0)
    return (candidate.warmth, candidate.preference, used / (candidate.slots or 1))
