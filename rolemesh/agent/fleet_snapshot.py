"""What the fleet is at one moment, for reports and for people; values only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rolemesh.agent.failures import Failure
from rolemesh.agent.placement import PlacementView
from rolemesh.names import ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSnapshot:
    """One instance: what placement sees of it, and what only people care for.

    `reason` says why it failed or who stopped it; `status_text` is the last word of its unit.
    """

    view: PlacementView
    devices: tuple[str, ...] = ()
    slots: int = 1
    slots_held: int = 0
    reason: str = ""
    main_pid: int | None = None
    status_text: str = ""
    restarts: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the element of `instances` in reports."""
        view = self.view
        return {
            "instance": view.name,
            "state": view.state.value,
            "model_id": view.model_id,
            "next_model_id": view.next_model_id,
            "assigned_model_id": view.assigned,
            "pinned": view.pinned,
            "usable": not view.missing,
            "reason": view.missing or self.reason,
            "devices": list(self.devices),
            "pid": self.main_pid,
            "status": self.status_text,
            "restarts": self.restarts,
            "slots": self.slots,
            "slots_free": max(0, self.slots - self.slots_held),
            "requests": view.leases,
            "waiting": view.waiting,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSnapshot:
    """All instances, in order of preference, and the models whose last load failed."""

    instances: tuple[InstanceSnapshot, ...] = ()
    failures: Mapping[ModelId, Failure]
