"""The fleet as settings and inventory want it: adopts what runs, starts, restarts, retires."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from rolemesh.agent import upkeep
from rolemesh.agent.desired import DesiredInstance, changed_models
from rolemesh.agent.fleet_core import FleetCore
from rolemesh.agent.instance import (
    DeviceLost,
    Instance,
    InstanceState,
    RestartWanted,
    UnloadWanted,
)
from rolemesh.agent.managed_instance import DRAINED, ManagedInstance
from rolemesh.agent.observation import HostObservation
from rolemesh.agent.placement_view import Placed, is_gpu
from rolemesh.agent.unit_control import ActiveState
from rolemesh.config.settings import NodeSettings
from rolemesh.names import InstanceName, ModelId


class FollowingFleet(FleetCore):
    """Follows settings and inventory; what did not change goes on untouched."""

    def start(
        self, desired: Iterable[DesiredInstance], observation: HostObservation | None = None
    ) -> None:
        """Adopt what runs, then start the instances whose settings name a model."""
        self._control.subscribe(self._unit_changed)
        self.apply(self._settings, desired, observation)

    def apply(
        self,
        settings: NodeSettings,
        desired: Iterable[DesiredInstance],
        observation: HostObservation | None = None,
    ) -> None:
        """Follow changed settings or a changed inventory; what did not change goes on untouched.

        An instance whose model changed is restarted once it is idle, one whose model or itself
        is gone is drained and stopped, one whose GPU is lost is stopped.
        """
        changed = changed_models(self._settings, settings)
        self._settings = self._placing.settings = settings
        if observation is not None:
            self._placing.observation = observation
        wanted = {instance.name: instance for instance in desired}
        with self._at_once():
            for model_id in changed:
                self._failures.forget(model_id)
            for managed in tuple(self._managed.values()):
                if managed.desired.name not in wanted and not self._stays(managed, wanted):
                    self._retire(managed)
                else:
                    self._follow_models(managed, changed)
            for instance in wanted.values():
                self._adopt(instance)
            self._adopt_others(wanted)
            self._stop_lost()
            self._placing.observe(self._placing.observation, self._managed.values())
            self._start_due()
            self._managed = {name: self._managed[name] for name in (*wanted, *self._managed)}
            self._is_unsettled = True

    def observe(self, observation: HostObservation) -> None:
        """Learn what was seen of the machine."""
        with self._at_once():
            self._placing.observe(observation, self._managed.values())
            self._stop_lost()
            for managed in tuple(self._managed.values()):
                if managed.is_left_over:
                    self._dispatch(managed, UnloadWanted(why="failed"))
            self._start_due()
            self._is_unsettled = True

    def _look_after(self) -> None:
        """Do what is due without being asked."""
        self._start_due()
        views = [self._placing.view(managed) for managed in self._managed.values()]
        for name in upkeep.unused(views, self._settings, now=self._clock()):
            self._dispatch(self._managed[name], UnloadWanted(why="nobody has used it for a while"))
        if not self._waiting.counts:
            self._warm_up()

    def _warm_up(self) -> None:
        """Load what shall be warm, as far as that displaces nobody."""
        views = [self._placing.view(managed) for managed in self._managed.values()]
        for model in upkeep.cold_though_warm(views, self._settings):
            if self._may_seek(model.model_id) and self._placing.has_looked_at(model.model_id):
                managed = self._managed.values()
                placed = self._placing.place(model.model_id, managed, patient=True)
                if isinstance(placed, Placed):
                    self._load(model.model_id, placed)

    # -- what there shall be ---------------------------------------------------------------

    def _adopt(self, desired: DesiredInstance) -> None:
        """Follow what an instance shall be."""
        managed = self._managed.get(desired.name)
        before = None if managed is None else managed.desired
        if managed is None:
            managed = self._manage(desired)
        managed.desired, managed.retired = desired, False
        if before is not None and desired.pinned != before.pinned:
            # The latest word counts, and that is now the settings'.
            self._choices.forget_pin(desired.name)
            managed.pinned = None
        if desired.is_foreign:
            self._let_go(managed, desired.missing)
            return
        if before is None or before.is_foreign:
            managed.instance = Instance(name=desired.name)
            status = self._control.statuses().get(desired.name)
            if status is not None:
                self._observe(managed, status)
        if managed.is_drained or (desired.missing and not is_gpu(desired.name)):
            self._let_go(managed, DRAINED if managed.is_drained else desired.missing)
        elif desired.is_fixed and not managed.is_empty and managed.devices != desired.devices:
            self._let_go(managed, "its GPUs changed")
            managed.is_due = desired.model is not None
        managed.is_due |= _is_to_be_started(before, managed)

    def _let_go(self, managed: ManagedInstance, why: str) -> None:
        if not managed.is_empty:
            self._dispatch(managed, UnloadWanted(why=why))

    def _adopt_others(self, wanted: Mapping[InstanceName, DesiredInstance]) -> None:
        """Take over what an earlier agent with this configuration left running.

        What it made beside our instances goes on where we may do that too; all else is ended. What
        an admin started by hand has no parameters, and is left alone.
        """
        ours = self._our_devices(wanted)
        for name, status in self._control.statuses().items():
            told = self._files.read_parameters(name)
            runs = status.active in {ActiveState.ACTIVE, ActiveState.ACTIVATING}
            if name in self._managed or told is None or not runs:
                continue
            if told.config != self._files.config or not set(told.devices) <= ours:
                continue
            managed = self._manage(
                DesiredInstance(name=name, devices=told.devices, is_extra=True, is_fixed=True)
            )
            self._observe(managed, status)
            if (self._settings.instances or not told.devices) and not status.enabled:
                self._retire(managed)

    def _our_devices(self, wanted: Mapping[InstanceName, DesiredInstance]) -> frozenset[str]:
        """Return the GPUs that are ours, those included that cannot be read for a moment."""
        known = {uuid for instance in wanted.values() for uuid in instance.devices}
        if self._placing.observation is not None:
            inventory = self._placing.observation.inventory
            known |= {gpu.reading.uuid for gpu in inventory.gpus}
            known |= {*inventory.lost.values(), *inventory.lost_slices.values()}
        return frozenset(known)

    def _stop_lost(self) -> None:
        """End what runs over a GPU that the driver calls lost."""
        if self._placing.observation is None:
            return
        inventory = self._placing.observation.inventory
        lost = {
            inventory.lost[number]: f"gpu{number} is lost: {why}"
            for number, why in inventory.gone.items()
            if number in inventory.lost
        }
        for managed in tuple(self._managed.values()):
            reason = next((lost[uuid] for uuid in managed.devices if uuid in lost), "")
            if managed.desired.is_lost or (reason and not managed.is_empty):
                reason = managed.desired.missing or reason
                self._dispatch(managed, DeviceLost(reason=reason))

    def _start_due(self) -> None:
        """Start the instances whose settings name a model, as soon as they can have it."""
        for managed in tuple(self._managed.values()):
            desired = managed.desired
            if not managed.is_due or desired.missing or managed.is_drained:
                continue
            model_id = desired.model
            if model_id is None or managed.is_bound_for(model_id):
                managed.is_due = model_id is not None and managed.state is not InstanceState.READY
                continue
            if not self._may_seek(model_id) or not self._placing.has_looked_at(model_id):
                continue
            placed = self._placing.place_on(model_id, desired.name, self._managed.values())
            if isinstance(placed, Placed):
                if not placed.evicts:  # others are not displaced for what nobody asks for
                    self._load(model_id, placed)
            elif not placed.may_pass:
                self._failures.record(model_id, str(placed), now=self._clock())

    def _stays(
        self, managed: ManagedInstance, wanted: Mapping[InstanceName, DesiredInstance]
    ) -> bool:
        """Tell whether an instance made beside another still has its GPUs."""
        ours = self._our_devices(wanted)
        is_extra = managed.desired.is_extra and not managed.retired
        return is_extra and not self._settings.instances and set(managed.devices) <= ours

    def _retire(self, managed: ManagedInstance) -> None:
        managed.retired = True
        managed.desired = replace(managed.desired, missing="no longer configured")
        self._dispatch(managed, UnloadWanted(why="no longer configured"))
        if managed.is_forgettable:
            self._managed.pop(managed.desired.name, None)

    def _follow_models(self, managed: ManagedInstance, changed: frozenset[ModelId]) -> None:
        known, instance = self._settings.models, managed.instance
        if any(model_id in changed - known.keys() for model_id in _models_of(instance)):
            self._dispatch(managed, UnloadWanted(why="no longer configured"))
        elif instance.model_id in changed:
            count = known[instance.model_id].gpus
            if count is not None and count != len(managed.devices) and managed.devices:
                self._let_go(managed, "its settings changed")
                managed.is_due = managed.desired.model == instance.model_id
            else:
                self._dispatch(managed, RestartWanted())


def _is_to_be_started(before: DesiredInstance | None, managed: ManagedInstance) -> bool:
    """Tell whether an instance has just got a model to run, or the means to."""
    desired = managed.desired
    if desired.model is None:
        return False
    if before is None or before.is_foreign:
        return managed.is_empty
    return desired.model != before.model or bool(before.missing and not desired.missing)


def _models_of(instance: Instance) -> tuple[ModelId, ...]:
    """Return what it runs and what it is to run next."""
    both = (instance.model_id, instance.next_model_id)
    return tuple(model_id for model_id in both if model_id is not None)
