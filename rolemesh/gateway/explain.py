"""Who would answer a request for an alias now, and why nobody else would; pure.

What is printed is what selection decides; here is only how its decisions follow from each other
along the aliases that are tried one after another.
"""

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any

from rolemesh.gateway.routing_table import Candidate, CandidateKey, RoutingTable, Target
from rolemesh.gateway.selection import Load, may_wait
from rolemesh.gateway.verdicts import Verdict, explain_selection
from rolemesh.names import Alias

DescribeBreaker = Callable[[CandidateKey], str]


def explain(
    alias: Alias,
    table: RoutingTable,
    load: Load,
    *,
    may_use: AbstractSet[Alias] | None,
    held_back: str,
    breaker: DescribeBreaker,
) -> dict[str, Any]:
    """Return `usable`, `reason`, `chosen` and `candidates` of an alias that there is.

    `may_use` are the aliases that the client's key may use, None for any; `held_back` says why
    its requests have to wait whatever is free, "" if they have not.
    """
    hops = [table.targets[alias], *_fallbacks(table, alias)]
    verdicts = list(_along(hops, load, may_use, held_back))
    chosen = next((each.candidate for _, each in verdicts if each.is_chosen), None)
    reason = _why_not(alias, may_use) or hops[0].reason
    return {
        "alias": alias,
        "usable": not reason,
        "reason": reason,
        "chosen": None if chosen is None else _place(chosen),
        "candidates": [
            {
                **_place(verdict.candidate),
                "alias": hop.alias,
                "chosen": verdict.is_chosen,
                "why": verdict.why,
                "warmth": verdict.candidate.warmth.name.lower(),
                "slots": verdict.candidate.slots,
                "in_flight": load.in_flight.get(verdict.candidate.counted_as, 0),
                "breaker": breaker(verdict.candidate.key),
            }
            for hop, verdict in verdicts
        ],
    }


def _fallbacks(table: RoutingTable, alias: Alias) -> Iterator[Target]:
    for hop in table.targets[alias].fallback:
        if hop in table.targets:
            yield table.targets[hop]


def _along(
    hops: list[Target], load: Load, may_use: AbstractSet[Alias] | None, held_back: str
) -> Iterator[tuple[Target, Verdict]]:
    """Yield the verdict on every candidate of every hop, in the order they are asked."""
    taken = _why_not(hops[0].alias, may_use) or held_back
    for hop in hops:
        refusal = taken or _why_not(hop.alias, may_use)
        for verdict in explain_selection(hop, load):
            if refusal:
                yield hop, Verdict(candidate=verdict.candidate, is_chosen=False, why=refusal)
            else:
                yield hop, verdict
        if not refusal and may_wait(hop, failed=frozenset()):
            taken = f"only tried where {hop.alias} has nobody left"


def _why_not(alias: Alias, may_use: AbstractSet[Alias] | None) -> str:
    return "" if may_use is None or alias in may_use else f"the key may not use {alias}"


def _place(candidate: Candidate) -> dict[str, Any]:
    return {
        "upstream": candidate.upstream.name,
        "model": candidate.model,
        "instance": candidate.instance,
    }
