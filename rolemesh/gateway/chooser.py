"""Who takes a request: selection, with what is known of its conversation."""

import asyncio
import itertools

from rolemesh.gateway.admission import Admission
from rolemesh.gateway.affinity import AffinityIndex, prefix_chain
from rolemesh.gateway.routing_table import Candidate, CandidateKey, Target
from rolemesh.gateway.selection import (
    Load,
    can_take,
    select_candidate,
    select_for_conversation,
)
from rolemesh.gateway.trip import Trip


class Chooser:
    """Chooses candidates, and tells the index of conversations who got what."""

    def __init__(self, admission: Admission, affinity: AffinityIndex) -> None:
        self._loop = asyncio.get_running_loop()
        self._admission = admission
        self._affinity = affinity
        self._rotation = itertools.count()

    def select(
        self, trip: Trip, target: Target, load: Load
    ) -> Candidate | frozenset[CandidateKey] | None:
        """Return who takes the request now, whose slots it waits for, or None for anybody's."""
        cost, failed, only = trip.claim.cost, trip.failed, target.only
        if only is not None:
            return only if can_take(target.alias, only, load, cost=cost, failed=failed) else None
        rotation = next(self._rotation)
        spills = target.may_spill and self._spills(trip, target)
        if not self._belongs_to_conversation(trip):
            return select_candidate(
                target, load, cost=cost, failed=failed, rotation=rotation, spills=spills
            )
        preference = trip.preference
        chosen = select_for_conversation(
            target,
            load,
            cost=cost,
            failed=failed,
            rotation=rotation,
            preference=preference,
            active=self._affinity.active,
            now=self._loop.time(),
            spills=spills,
        )
        if isinstance(chosen, frozenset) and preference and preference.passed_since is not None:
            patient_until = preference.passed_since + preference.worth_s
            if trip.wakes_at != patient_until:
                trip.wakes_at = patient_until
                self._loop.call_at(patient_until, self._admission.wake)
        return chosen

    def _spills(self, trip: Trip, target: Target) -> bool:
        """Tell whether a request has waited so long that one more instance is worth its load."""
        spills_at = trip.claim.arrived_at + target.spill_after_s
        if self._loop.time() >= spills_at:
            return True
        if not trip.looks_again:
            trip.looks_again = True
            self._loop.call_at(spills_at, self._admission.wake)
        return False

    def _belongs_to_conversation(self, trip: Trip) -> bool:
        """Tell whether somebody may hold the beginning of a request; looks who that is, once."""
        if not trip.attempts and trip.chain is None:
            salt = (trip.claim.principal.name, trip.alias)
            chain = trip.chain = prefix_chain(trip.path.upstream_path, trip.body.members, salt)
            trip.preference = None if chain is None else self._affinity.preference(chain)
        return trip.chain is not None

    def set_out(self, trip: Trip, candidate: Candidate) -> None:
        """Note that the request is sent to a candidate."""
        trip.candidate = candidate
        trip.attempts += 1
        if trip.chain is not None:
            depth = trip.preference.depth if trip.preference is not None else None
            trip.new_bytes = self._affinity.remember(trip.chain, candidate.key, depth)

    def answered(self, trip: Trip, candidate: Candidate) -> None:
        """Note that it was answered: of a stream the first byte tells how fast was read."""
        if trip.chain is not None and trip.body.stream:
            sent_at = trip.attempt_at or trip.request.received_at
            self._affinity.read(candidate.key, trip.new_bytes, trip.first_byte_at - sent_at)
