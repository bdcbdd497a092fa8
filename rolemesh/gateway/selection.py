"""Which candidate of a target takes a request; pure."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from rolemesh.gateway.routing_table import Candidate, CandidateKey, Target

COMPARED: Final = 32
"""How many candidates of a tier are compared by load. The least loaded of so many is as good as the
least loaded of all, and does not cost more the larger the mesh is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is under way: slots in use by candidate, and candidates that said they are full."""

    in_flight: Mapping[CandidateKey, int]
    full: AbstractSet[CandidateKey] = frozenset()


def select_candidate(
    target: Target, load: Load, *, cost: int, failed: AbstractSet[CandidateKey], rotation: int
) -> Candidate | None:
    """Return the candidate that takes the request now, None if none does.

    1. A candidate that cannot answer, or has failed this request already, is out.
    2. One without `cost` free slots waits; alone it takes any request, however large.
    3. Warm before loading before cold; then the node's own preference; then the least loaded;
       among equals each in turn, by `rotation`.
    """
    in_flight = load.in_flight
    for tier in target.tiers:
        best, least, compared, size = None, 0.0, 0, len(tier)
        for index in range(rotation, rotation + size):
            candidate = tier[index % size]
            if candidate.key in failed or _is_saturated(candidate, load, cost):
                continue
            used = in_flight.get(candidate.key, 0) / (candidate.slots or 1)
            if best is None or used < least:
                best, least = candidate, used
            compared += 1
            if not least or compared == COMPARED:
                break
        if best is not None:
            return best
    return None


def may_wait(target: Target, *, failed: AbstractSet[CandidateKey]) -> bool:
    """Tell whether some candidate would take the request with its slots free."""
    return any(candidate.key not in failed for tier in target.tiers for candidate in tier)


def _is_saturated(candidate: Candidate, load: Load, cost: int) -> bool:
    if candidate.key in load.full:
        return True
    used = load.in_flight.get(candidate.key, 0)
    return candidate.slots is not None and used > 0 and used + cost > candidate.slots
