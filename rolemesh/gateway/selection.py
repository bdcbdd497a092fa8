"""Which candidate of a target takes a request, and why the others do not; pure."""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

from rolemesh.gateway.affinity import Preference
from rolemesh.gateway.routing_table import Candidate, CandidateKey, Target, Warmth
from rolemesh.names import Alias

COMPARED: Final = 32
"""How many candidates of a tier are compared by load. The least loaded of so many is as good as the
least loaded of all, and does not cost more the larger the mesh is."""


_NOTHING: Final = (0.0, 0.0)
_COLD: Final = Warmth.COLD


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is under way, by what slots are counted as, and which candidates take nothing now.

    `in_flight` are slots in use, `by_alias` those of them that an alias with reserved slots uses.
    `full` are candidates that said so, `awaited` how many requests whose turn is before this one wait
    for each, and `awaited_by` for which aliases; `broken` are those whose breaker is open, which are
    asked only if there is nobody else. `ahead` says how many before this one wait for each though others
    are free; None: somebody behind may still want what is free.
    """

    in_flight: Mapping[CandidateKey, int]
    by_alias: Mapping[tuple[CandidateKey, Alias], int]
    full: AbstractSet[CandidateKey] = frozenset()
    awaited: Mapping[CandidateKey, int] = field(default_factory=dict)
    awaited_by: AbstractSet[tuple[CandidateKey, Alias]] = frozenset()
    ahead: Mapping[CandidateKey, int] | None = field(default_factory=dict)
    broken: AbstractSet[CandidateKey] = frozenset()


def select_candidate(
    target: Target,
    load: Load,
    *,
    cost: int,
    failed: AbstractSet[CandidateKey],
    rotation: int,
    spills: bool = False,
) -> Candidate | None:
    """Return the candidate that takes the request now, None if none does.

    1. A candidate that cannot answer, or has failed this request already, is out.
    2. One without `cost` free slots waits; alone it takes any request, however large. What costs
       nothing does not wait.
    3. Warm before loading before cold, where there is room first; then the node's own preference; then the least loaded;
       among equals each in turn, by `rotation`.
    4. A model is loaded once: who wants it joins the load under way, and waits for those that have
       it. One more is loaded only for a request that `spills`, having waited long, while every
       loaded one is saturated and none is loading.
    5. One whose breaker is open is the last resort: not before there is nobody to wait for.
    """
    out = failed | load.broken if load.broken else failed
    chosen = _select(target, load, cost, out, rotation, spills=spills)
    if chosen is None and load.broken and not may_wait(target, failed=out):
        chosen = _select(target, load, cost, failed, rotation, spills=spills)
    return chosen


def can_take(
    alias: Alias,
    only: Candidate,
    load: Load,
    *,
    cost: int,
    failed: AbstractSet[CandidateKey],
) -> bool:
    """Tell whether the only candidate of a target takes the request now: the same, in short."""
    return not (is_saturated(alias, only, load, cost) or (failed and only.key in failed))


def _select(
    target: Target,
    load: Load,
    cost: int,
    out: AbstractSet[CandidateKey],
    rotation: int,
    *,
    spills: bool,
) -> Candidate | None:
    in_flight = load.in_flight
    for any_tier in target.tiers:
        tier = any_tier
        if tier[0].warmth >= _COLD:
            tier = _worth_loading(target, tier, load, out, spills=spills)
        best, least, compared, size = None, 0.0, 0, len(tier)
        for index in range(rotation, rotation + size):
            candidate = tier[index % size]
            if candidate.key in out or is_saturated(target.alias, candidate, load, cost):
                continue
            used = in_flight.get(candidate.counted_as, 0) / (candidate.slots or 1)
            if best is None or used < least:
                best, least = candidate, used
            compared += 1
            if not least or compared == COMPARED:
                break
        if best is not None:
            return best
    return None


def _worth_loading(
    target: Target,
    tier: tuple[Candidate, ...],
    load: Load,
    out: AbstractSet[CandidateKey],
    *,
    spills: bool,
) -> tuple[Candidate, ...]:
    """Return which candidates of a tier without the model may be asked to load it."""
    others = [
        each
        for any_tier in target.tiers
        for each in any_tier
        if each.key not in out and not (each.warmth >= _COLD and each.counted_as in load.full)
    ]
    asked = [
        each for each in others if each.warmth >= _COLD and load.in_flight.get(each.counted_as)
    ]
    if asked or any(each.warmth is Warmth.LOADING for each in others):
        return tuple(each for each in tier if each in asked)
    if spills or all(each.warmth >= _COLD for each in others):
        return tier
    return ()


def select_for_conversation(
    target: Target,
    load: Load,
    *,
    cost: int,
    failed: AbstractSet[CandidateKey],
    rotation: int,
    preference: Preference | None,
    active: Callable[[CandidateKey], int],
    now: float,
    spills: bool = False,
) -> Candidate | frozenset[CandidateKey] | None:
    """Return who takes a request that belongs to a conversation, or whose slots it waits for.

    1. Whoever holds its beginning takes it, if it can; where nothing follows up, only if nobody is
       less loaded.
    2. For a holder that is full it waits while somebody else may want what is free, and then as
       long as `preference` says. Where as many wait before it as the holder has slots, and who is
       free would hold fewer conversations even with this one, the holder is overloaded and sheds it.
    3. Else it is as in `select_candidate`; among those equally loaded the one with the fewest
       conversations (`active`).
    """
    out = failed | load.broken if load.broken else failed
    holder = None if preference is None else _holder(target, preference.key, out)
    if preference is None or holder is None:
        return _least(target, load, cost, out, rotation, active, spills=spills) or select_candidate(
            target, load, cost=cost, failed=failed, rotation=rotation, spills=spills
        )
    is_full = is_saturated(target.alias, holder, load, cost)
    waits = frozenset({holder.counted_as})
    if not is_full and (preference.worth_s or not load.in_flight.get(holder.counted_as)):
        return holder
    if preference.worth_s and load.ahead is None:
        return waits
    other = _least(target, load, cost, out, rotation, active, spills=spills)
    if not preference.worth_s:
        is_first = other is None or _used(holder, load) <= _used(other, load)
        return holder if is_first and not is_full else other
    if other is None:
        preference.nothing_passed()
        return waits
    assert load.ahead is not None
    sheds = load.ahead.get(holder.counted_as, 0) >= (holder.slots or 1) and (
        _held(active(other.key) + 1, other) < _held(active(holder.key), holder)
    )
    return other if sheds or not preference.passes_by(now) else waits


def _held(conversations: int, candidate: Candidate) -> float:
    return conversations / (candidate.slots or 1)


def _holder(target: Target, key: CandidateKey, out: AbstractSet[CandidateKey]) -> Candidate | None:
    """Return the candidate that holds something, unless it is out or has unloaded its model."""
    return None if key in out else target.ready.get(key)


def _least(  # noqa: PLR0917 - private
    target: Target,
    load: Load,
    cost: int,
    out: AbstractSet[CandidateKey],
    rotation: int,
    active: Callable[[CandidateKey], int],
    *,
    spills: bool,
) -> Candidate | None:
    """Return the least loaded candidate that can take a request; of equals who holds the least."""
    for any_tier in target.tiers:
        tier = any_tier
        if tier[0].warmth >= _COLD:
            tier = _worth_loading(target, tier, load, out, spills=spills)
        best, least, size = None, (0.0, 0.0), len(tier)
        for index in range(rotation, rotation + min(size, COMPARED)):
            candidate = tier[index % size]
            if candidate.key in out or is_saturated(target.alias, candidate, load, cost):
                continue
            burden = (_used(candidate, load), _held(active(candidate.key), candidate))
            if best is None or burden < least:
                best, least = candidate, burden
            if burden == _NOTHING:
                break
        if best is not None:
            return best
    return None


def _used(candidate: Candidate, load: Load) -> float:
    return load.in_flight.get(candidate.counted_as, 0) / (candidate.slots or 1)


def may_wait(target: Target, *, failed: AbstractSet[CandidateKey]) -> bool:
    """Tell whether some candidate would take the request with its slots free."""
    return any(candidate.key not in failed for tier in target.tiers for candidate in tier)


def waited_for(target: Target, *, failed: AbstractSet[CandidateKey]) -> frozenset[CandidateKey]:
    """Return whose slots a request for this target waits for, as they are counted."""
    return frozenset(
        candidate.counted_as
        for tier in target.tiers
        for candidate in tier
        if candidate.key not in failed
    )


def is_saturated(alias: Alias, candidate: Candidate, load: Load, cost: int) -> bool:
    """Tell whether a candidate has no slots for a request of this cost."""
    if not cost:
        return False
    key = candidate.counted_as
    if load.full and key in load.full:
        return True
    if load.awaited and key in load.awaited and not _has_its_own(alias, candidate, load, cost):
        return True
    slots = candidate.slots
    if slots is None:
        return False
    used = load.in_flight.get(key, 0)
    if candidate.reserved:
        kept = kept_for_others(alias, candidate, load)
        # A reservation of all there is leaves others nothing.
        return used + kept + cost > slots if used else kept >= slots
    return used > 0 and used + cost > slots


def _has_its_own(alias: Alias, candidate: Candidate, load: Load, cost: int) -> bool:
    """Tell whether slots are free that are reserved for this alias: nobody else waits for those."""
    key = candidate.counted_as
    reserved = dict(candidate.reserved).get(alias, 0)
    used = load.by_alias.get((key, alias), 0)
    return used + cost <= reserved and (key, alias) not in load.awaited_by


def kept_for_others(alias: Alias, candidate: Candidate, load: Load) -> int:
    """Return how many of the free slots are reserved for other aliases."""
    return sum(
        max(0, slots - load.by_alias.get((candidate.counted_as, other), 0))
        for other, slots in candidate.reserved
        if other != alias
    )
