"""What the fleet is at one moment, for reports and for people; values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rolemesh.agent.failures import Failure
from rolemesh.agent.placement_view import PlacementView, Refused
from rolemesh.llama.server_facts import ServerFacts
from rolemesh.names import ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSnapshot:
    """One instance: what placement sees of it, and what only people care for.

    `reason` says why it failed, who stopped it, or what its start waits for; `last_failure` why it
    failed last, at `last_failure_at` (ISO 8601), even if it serves again. `status_text` is the last
    word of its unit, `facts` what its llama-server is. `version` is that of its rolemesh-llama, which
    may be known without them; `version_problem` says why they are not.
    """

    view: PlacementView
    devices: tuple[str, ...] = ()
    slots: int = 1
    slots_held: int = 0
    reason: str = ""
    last_failure: str = ""
    last_failure_at: str = ""
    main_pid: int | None = None
    facts: ServerFacts | None = None
    version: str = ""
    version_problem: str = ""
    status_text: str = ""
    restarts: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the element of `instances` in reports."""
        view, facts = self.view, self.facts
        return {
            "instance": view.name,
            "state": view.state.value,
            "model_id": view.model_id,
            "next_model_id": view.next_model_id,
            "assigned_model_id": view.assigned,
            "pinned": view.pinned,
            "usable": not view.missing,
            "reason": view.missing or self.reason,
            "last_failure": self.last_failure or None,
            "last_failure_at": self.last_failure_at or None,
            "devices": list(self.devices),
            "pid": self.main_pid,
            "server_pid": facts.server_pid if facts else None,
            "version": self.version or None,
            "version_problem": self.version_problem or None,
            "build": facts.build if facts else None,
            "args_hash": facts.args_hash if facts else None,
            "status": self.status_text,
            "restarts": self.restarts,
            "slots": self.slots,
            "slots_free": max(0, self.slots - self.slots_held),
            "requests": view.leases,
            "waiting": view.waiting,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSnapshot:
    """All instances, in order of preference, and the models whose last load failed.

    `refused` are the models that no instance can take now; `load_s` is how long the last load of a
    model took, from the wish to the first token. `problem` says which of the operators'
    choices are not saved.
    """

    instances: tuple[InstanceSnapshot, ...] = ()
    failures: Mapping[ModelId, Failure]
    refused: Mapping[ModelId, Refused] = field(default_factory=dict)
    load_s: Mapping[ModelId, float] = field(default_factory=dict)
    problem: str = ""
