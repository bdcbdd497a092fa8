"""One instance with what the fleet keeps beside its state; changed by the fleet alone."""

from collections.abc import Mapping

from rolemesh.agent.desired import DesiredInstance
from rolemesh.agent.fleet_snapshot import InstanceSnapshot
from rolemesh.agent.instance import Instance, InstanceState
from rolemesh.agent.placement import PlacementView
from rolemesh.agent.slots import Slots
from rolemesh.agent.unit_control import UnitStatus
from rolemesh.names import InstanceName, ModelId


class ManagedInstance:
    """`last_used` is monotonic; a `retired` one is forgotten as soon as it is empty.

    One that is `enabled` in systemd counts as pinned.
    """

    def __init__(self, desired: DesiredInstance) -> None:
        self.desired = desired
        self.instance = Instance(name=desired.name)
        self.slots = Slots()
        self.last_used = 0.0
        self.retired = False
        self.enabled = False

    @property
    def state(self) -> InstanceState:
        """Where it is in its life."""
        return self.instance.state

    @property
    def is_empty(self) -> bool:
        """Nothing runs there and nothing is about to, as far as the agent wants."""
        return self.state in {InstanceState.STOPPED, InstanceState.FAILED}

    def serves(self, model_id: ModelId) -> bool:
        """Tell whether requests for the model can be sent there now."""
        return self.state is InstanceState.READY and self.instance.model_id == model_id

    def suits_better_than(
        self, other: "ManagedInstance | None", preferred: InstanceName | None
    ) -> bool:
        """Tell whether this is the preferred one, or, if neither is, more slots are free here."""
        if other is None:
            return True
        if preferred is not None and preferred in (self.desired.name, other.desired.name):
            return self.desired.name == preferred
        mine, theirs = self.slots, other.slots
        return mine.total - mine.held > theirs.total - theirs.held

    def view(self, waiting: Mapping[ModelId, int]) -> PlacementView:
        """Return what placement sees; `waiting` counts the requests that wait, by model."""
        instance, desired = self.instance, self.desired
        return PlacementView(
            name=desired.name,
            state=instance.state,
            model_id=instance.model_id,
            next_model_id=instance.next_model_id,
            assigned=desired.model,
            pinned=desired.pinned or self.enabled,
            missing=desired.missing,
            leases=self.slots.requests,
            waiting=waiting.get(instance.model_id, 0) if instance.model_id is not None else 0,
            last_used=self.last_used,
        )

    def snapshot(
        self, waiting: Mapping[ModelId, int], status: UnitStatus | None
    ) -> InstanceSnapshot:
        """Return the instance as it is now; `status` is its unit's, if it has one."""
        return InstanceSnapshot(
            view=self.view(waiting),
            devices=self.desired.devices,
            slots=self.slots.total,
            slots_held=self.slots.held,
            reason=self.instance.reason,
            main_pid=status.main_pid if status else None,
            status_text=status.status_text if status else "",
            restarts=status.restarts if status else 0,
        )
