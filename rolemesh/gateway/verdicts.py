"""Why selection takes one candidate and not another, in words; pure."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from rolemesh.gateway.routing_table import Candidate, CandidateKey, Target, Warmth
from rolemesh.gateway.selection import Load, is_saturated, kept_for_others, select_candidate
from rolemesh.names import Alias


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What selection says of one candidate: that it is chosen, or why it is not."""

    candidate: Candidate
    is_chosen: bool
    why: str


def explain_selection(
    target: Target,
    load: Load,
    *,
    cost: int = 1,
    failed: AbstractSet[CandidateKey] = frozenset(),
    rotation: int = 0,
) -> Iterator[Verdict]:
    """Yield a verdict on every candidate, in the order they are considered."""
    chosen = select_candidate(target, load, cost=cost, failed=failed, rotation=rotation)
    usable = [candidate for tier in target.tiers for candidate in tier]
    for candidate in usable:
        if candidate is chosen:
            yield Verdict(candidate=candidate, is_chosen=True, why=_why_chosen(candidate, load))
        else:
            why = _why_not(target.alias, candidate, chosen, load, cost, failed)
            yield Verdict(candidate=candidate, is_chosen=False, why=why)
    for candidate in target.candidates:
        if candidate.unusable:
            yield Verdict(candidate=candidate, is_chosen=False, why=candidate.unusable)


def _why_chosen(candidate: Candidate, load: Load) -> str:
    used = load.in_flight.get(candidate.counted_as, 0)
    of = f" of {candidate.slots}" if candidate.slots is not None else ""
    last_resort = "; its breaker is open, but nobody else is left" * (candidate.key in load.broken)
    return f"{_WARMTH_WORDS[candidate.warmth]}, {used}{of} slots in use{last_resort}"


def _why_not(  # noqa: PLR0917 - private, with one caller
    alias: Alias,
    candidate: Candidate,
    chosen: Candidate | None,
    load: Load,
    cost: int,
    failed: AbstractSet[CandidateKey],
) -> str:
    if candidate.key in failed:
        return "has failed this request already"
    if is_saturated(alias, candidate, load, cost):
        return _why_saturated(alias, candidate, load)
    if candidate.key in load.broken:
        return "its breaker is open"
    if chosen is None:
        return "free" if candidate.warmth < Warmth.COLD else "not loaded: those that are come first"
    if candidate.warmth > chosen.warmth:
        return f"{_WARMTH_WORDS[candidate.warmth]}: further from its first token"
    if candidate.preference > chosen.preference:
        return "its node prefers another model"
    return "not less loaded than the chosen one"


def _why_saturated(alias: Alias, candidate: Candidate, load: Load) -> str:
    key = candidate.counted_as
    if key in load.full:
        return "said that it is full"
    if key in load.awaited:
        return f"{load.awaited[key]} wait for it"
    kept = kept_for_others(alias, candidate, load)
    reserved = f", {kept} reserved for other aliases" * (kept > 0)
    return f"{load.in_flight.get(key, 0)} of {candidate.slots} slots in use{reserved}"


_WARMTH_WORDS: Final = {
    Warmth.READY: "ready",
    Warmth.LOADING: "loading",
    Warmth.COLD: "not loaded",
    Warmth.CROWDED: "not loaded, others are busy there",
}
