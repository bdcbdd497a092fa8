"""One instance with what the fleet keeps beside its state; changed by the fleet alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rolemesh.agent.desired import DesiredInstance
from rolemesh.agent.fleet_snapshot import InstanceSnapshot
from rolemesh.agent.instance import Instance, InstanceState
from rolemesh.agent.placement_view import PlacementView
from rolemesh.agent.slots import Slots
from rolemesh.agent.unit_control import ActiveState, UnitStatus
from rolemesh.llama.memory import MemoryNeed
from rolemesh.names import InstanceName, ModelId

if TYPE_CHECKING:
    from rolemesh.llama.server_facts import ServerFacts

DRAINED: Final = "drained by an operator"


@dataclass(frozen=True, slots=True)
class Failed:
    """Why an instance failed last, and when (UTC)."""

    reason: str
    at: datetime


class ManagedInstance:
    """`last_used` and `ready_since` are monotonic; a `retired` one is forgotten once it is empty.

    `devices` are those it runs over, or would; `next_devices` those for what it runs next, and
    `evicts` the instances that leave for that. `is_due`: its settings name a model that is still to
    be started. `is_for_waiting`: what it runs next is for requests that wait. `load_s`: how long its
    load took. One that is `enabled` in systemd counts as pinned
    unless an operator's `pinned` says otherwise. `facts` are what its llama-server is, or
    `why_no_facts`; `version` is that of its rolemesh-llama. `is_drained`: an operator wants it left alone.
    """

    def __init__(self, desired: DesiredInstance) -> None:
        self.desired = desired
        self.devices = desired.devices
        self.next_devices: tuple[str, ...] = ()
        self.evicts: tuple[InstanceName, ...] = ()
        self.is_due = False
        self.is_for_waiting = False
        self.load_s = 0.0
        self.unit_active = ActiveState.INACTIVE
        self.pinned: bool | None = None
        self.is_drained = False
        self.ready_since = 0.0
        self.started_at: float | None = None
        self.waits_for = ""
        self.last_failure: Failed | None = None
        self.main_pid: int | None = None
        self.facts: ServerFacts | None = None
        self.why_no_facts = ""
        self.version = ""
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

    def note_failure(self, reason: str) -> None:
        """Keep why it failed, beyond the restart that mends it."""
        if self.last_failure is None or self.last_failure.reason != reason:
            self.last_failure = Failed(reason, datetime.now(UTC))

    def note_start(self, now: float) -> None:
        """Begin to measure a start, and know nothing any more of the llama-server that ran there."""
        self.started_at = now
        self.facts, self.why_no_facts, self.version = None, "", ""

    @property
    def is_forgettable(self) -> bool:
        """Nobody wants it to be, and nothing of it is left."""
        gone = self.retired or self.desired.is_extra
        return gone and self.state is InstanceState.STOPPED

    @property
    def is_left_over(self) -> bool:
        """Nobody wants it to be, but its unit may not be over."""
        gone = self.retired or self.desired.is_extra
        return gone and self.state is InstanceState.FAILED

    def is_bound_for(self, model_id: ModelId) -> bool:
        """Tell whether it runs the model or will without being asked again."""
        if self.state in {InstanceState.DRAINING, InstanceState.STOPPING}:
            return self.instance.next_model_id == model_id
        return self.instance.model_id == model_id and not self.is_empty

    @property
    def pids(self) -> frozenset[int]:
        """Its processes, as far as they are known."""
        server = None if self.facts is None else self.facts.server_pid
        return frozenset(pid for pid in (self.main_pid, server) if pid is not None)

    @property
    def bound_for(self) -> ModelId | None:
        """The model it has or is about to have."""
        return self.instance.next_model_id or self.instance.model_id

    def view(
        self,
        waiting: Mapping[ModelId, int],
        need_of: Callable[[ModelId], MemoryNeed | None],
        held: Mapping[str, int],
    ) -> PlacementView:
        """Return what placement sees.

        `waiting` counts the requests that wait, by model; `held` is what NVML says it holds.
        """
        instance, desired = self.instance, self.desired
        runs = self.bound_for
        by_settings = desired.pinned or self.enabled
        return PlacementView(
            name=desired.name,
            state=instance.state,
            model_id=instance.model_id,
            next_model_id=instance.next_model_id,
            assigned=desired.model,
            pinned=by_settings if self.pinned is None else self.pinned,
            missing=DRAINED if self.is_drained else desired.missing,
            devices=self._all_devices(),
            held=held,
            is_fixed=desired.is_fixed,
            need=None if runs is None or self.is_empty else need_of(runs),
            leases=self.slots.requests,
            waiting=waiting.get(instance.model_id, 0) if instance.model_id is not None else 0,
            last_used=self.last_used,
            ready_since=self.ready_since,
            load_s=self.load_s,
        )

    def _all_devices(self) -> tuple[str, ...]:
        """Return what it runs over, with what it is about to run over."""
        if self.is_empty:
            return self.desired.devices
        return tuple(dict.fromkeys((*self.devices, *self.next_devices)))

    def snapshot(self, view: PlacementView, status: UnitStatus | None) -> InstanceSnapshot:
        """Return the instance as it is now; `status` is its unit's, if it has one."""
        # Of one that crashed and loads again, what is known is of the run before.
        is_known = not self.is_empty and self.state is not InstanceState.LOADING
        return InstanceSnapshot(
            view=view,
            devices=view.devices,
            slots=self.slots.total,
            slots_held=self.slots.held,
            reason=self.waits_for or self.instance.reason or self._why_unused(),
            last_failure=self.last_failure.reason if self.last_failure else "",
            last_failure_at=_text(self.last_failure.at) if self.last_failure else "",
            main_pid=status.main_pid if status else None,
            facts=self.facts if is_known else None,
            version=self.version if is_known else "",
            version_problem=self.why_no_facts if is_known else "",
            status_text=status.status_text if status else "",
            restarts=status.restarts if status else 0,
        )

    def _why_unused(self) -> str:
        """Say why nothing is sent to one that serves."""
        unknown = self.state is InstanceState.READY and self.instance.model_id is None
        return "it serves, but nothing tells which model" if unknown else ""


def _text(when: datetime) -> str:
    return when.isoformat(timespec="seconds")
