"""The owner of all instances of this node: their states, their slots, who waits for what.

Single writer: everything here runs on the event loop, between two awaits at a time. Events come in
(requests, unit changes, ends of starts and stops), `instance.step` and `placement.place_model`
decide, `UnitDriver` acts. Others get leases, or immutable snapshots.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace

from rolemesh.agent import refusals
from rolemesh.agent.desired import DesiredInstance, changed_models
from rolemesh.agent.failures import Failures
from rolemesh.agent.fleet_snapshot import FleetSnapshot
from rolemesh.agent.instance import (
    Action,
    Drain,
    Drained,
    Instance,
    InstanceEvent,
    InstanceState,
    LoadWanted,
    RestartWanted,
    StartUnit,
    StopUnit,
    UnloadWanted,
)
from rolemesh.agent.instance_files import InstanceFiles
from rolemesh.agent.instance_log import log_change
from rolemesh.agent.managed_instance import ManagedInstance
from rolemesh.agent.placement import Refused, place_model
from rolemesh.agent.slots import Lease
from rolemesh.agent.transitions import step
from rolemesh.agent.unit_control import UnitControl, UnitStatus
from rolemesh.agent.unit_driver import UnitDriver, observed
from rolemesh.agent.waiting import Waiting
from rolemesh.config.settings import NodeSettings
from rolemesh.errors import UnknownAlias
from rolemesh.names import InstanceName, ModelId
from rolemesh.runtime.tasks import TaskScope


class Fleet:
    """The instances of this node.

    `problem_of` tells what is known to keep a model from being loaded ("": nothing); nothing is
    evicted for such a model.
    """

    def __init__(
        self,
        *,
        control: UnitControl,
        files: InstanceFiles,
        scope: TaskScope,
        settings: NodeSettings,
    ) -> None:
        self.problem_of: Callable[[ModelId], str] = lambda _: ""
        self._control = control
        self._files = files
        self._settings = settings
        self._driver = UnitDriver(control=control, files=files, scope=scope)
        self._clock = asyncio.get_running_loop().time
        self._managed: dict[InstanceName, ManagedInstance] = {}
        self._failures = Failures()
        self._waiting = Waiting()
        self._listeners: list[Callable[[], None]] = []
        self._settling = False
        self._ended = False

    # -- life ------------------------------------------------------------------------------

    def start(self, desired: Iterable[DesiredInstance]) -> None:
        """Adopt what runs, then start the instances whose settings name a model."""
        self._control.subscribe(self._unit_changed)
        self.apply(self._settings, desired)

    def end(self) -> None:
        """Look at units no more: whoever stops them from now on, it is not worth a word."""
        self._ended = True

    def apply(self, settings: NodeSettings, desired: Iterable[DesiredInstance]) -> None:
        """Follow changed settings or a changed inventory; what did not change goes on untouched.

        An instance whose model changed is restarted once it is idle, one whose model or itself
        is gone is drained and stopped.
        """
        changed = changed_models(self._settings, settings)
        self._settings = settings
        wanted = {instance.name: instance for instance in desired}
        for managed in tuple(self._managed.values()):
            if managed.desired.name not in wanted:
                self._retire(managed)
            else:
                self._follow_models(managed, changed)
        for model_id in changed:
            self._failures.forget(model_id)
        for instance in wanted.values():
            self._apply_instance(instance)
        self._managed = {name: self._managed[name] for name in (*wanted, *self._managed)}
        self._settle()

    def subscribe(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` after every change of what `snapshot` returns; it must not block."""
        self._listeners.append(on_change)

    def snapshot(self) -> FleetSnapshot:
        """Return all instances as they are now."""
        statuses = self._control.statuses()
        failures = {model_id: self._failures.of(model_id) for model_id in self._settings.models}
        return FleetSnapshot(
            instances=tuple(
                managed.snapshot(self._waiting.counts, statuses.get(managed.desired.name))
                for managed in self._managed.values()
            ),
            failures={key: failure for key, failure in failures.items() if failure is not None},
        )

    # -- what requests and operators want --------------------------------------------------

    async def lease(
        self, model_id: ModelId, *, cost: int, wait_s: float, prefer: InstanceName | None = None
    ) -> Lease:
        """Hold slots of a ready instance, `prefer` if that can, loading the model where needed.

        Raises UnknownAlias for a model not configured; SlotsBusy at once when it is loaded but no
        slot is free; Unavailable when it is not ready within `wait_s`, cannot be, or its load
        failed. All who wait for a model join one load.
        """
        await self._until_ready(model_id, wait_s)
        lease = self.lease_now(model_id, cost=cost, prefer=prefer)
        assert lease is not None
        return lease

    def lease_now(
        self, model_id: ModelId, *, cost: int, prefer: InstanceName | None = None
    ) -> Lease | None:
        """Do as `lease` does if the model is ready; None if it has to be waited for."""
        chosen, is_ready = None, False
        for managed in self._managed.values():
            if managed.serves(model_id):
                is_ready = True
                if managed.slots.fits(cost) and managed.suits_better_than(chosen, prefer):
                    chosen = managed
        if not is_ready:
            return None
        if chosen is None:
            raise refusals.slots_busy(model_id)
        chosen.last_used = self._clock()
        lease = chosen.slots.lease(
            chosen.desired.name, model_id, cost, lambda: self._request_ended(chosen)
        )
        self._settle()
        return lease

    async def ensure_ready(self, model_id: ModelId, *, wait_s: float) -> tuple[InstanceName, ...]:
        """Load the model unless it is; return the instances that serve it. Errors as in `lease`."""
        await self._until_ready(model_id, wait_s)
        return tuple(name for name, managed in self._managed.items() if managed.serves(model_id))

    async def until_change(self, wait_s: float) -> None:
        """Return at the next change of any instance; raises TimeoutError after `wait_s`."""
        await self._waiting.until_change(self._clock() + wait_s)

    def unload(self, model_id: ModelId) -> tuple[InstanceName, ...]:
        """Drain and stop every instance of the model; return which. Raises UnknownAlias."""
        self._check_known(model_id)
        running = [
            managed
            for managed in self._managed.values()
            if managed.instance.model_id == model_id and not managed.is_empty
        ]
        for managed in running:
            self._dispatch(managed, UnloadWanted())
        return tuple(managed.desired.name for managed in running)

    async def _until_ready(self, model_id: ModelId, wait_s: float) -> None:
        # 1. ready: return, without a suspension between this finding and the caller's lease
        # 2. cannot be loaded, failed since we joined, or no instance can ever take it: raise
        # 3. on its way, or every instance busy: wait for any change, then look again
        joined = self._failures.serial
        deadline = self._clock() + wait_s
        with self._waiting.join(model_id):
            while True:
                self._check_known(model_id)
                if any(managed.serves(model_id) for managed in self._managed.values()):
                    return
                self._raise_unloadable(model_id, joined)
                refused = self._seek_instance(model_id)
                if refused is not None and not refused.may_pass:
                    raise refusals.not_ready(model_id, refused)
                try:
                    await self._waiting.until_change(deadline)
                except TimeoutError as err:
                    raise refusals.not_ready(model_id, refused) from err

    def _check_known(self, model_id: ModelId) -> None:
        if model_id not in self._settings.models:
            raise UnknownAlias(model_id, tuple(self._settings.models))

    def _raise_unloadable(self, model_id: ModelId, joined: int) -> None:
        problem = self.problem_of(model_id)
        if problem:
            raise refusals.unusable(model_id, problem)
        failure, now = self._failures.of(model_id), self._clock()
        if failure is not None and (failure.serial > joined or failure.retry_at > now):
            raise refusals.failed(model_id, failure, now=now)

    def _seek_instance(self, model_id: ModelId) -> Refused | None:
        """Set an instance on its way to the model unless one is; return why none can be."""
        placed = place_model(
            model_id, [managed.view(self._waiting.counts) for managed in self._managed.values()]
        )
        if isinstance(placed, Refused):
            return placed
        if not placed.joins:
            self._dispatch(self._managed[placed.instance], LoadWanted(model_id=model_id))
        return None

    # -- events ----------------------------------------------------------------------------

    def _unit_changed(self, status: UnitStatus) -> None:
        managed = self._managed.get(status.instance)
        if managed is not None and not self._ended:
            self._observe(managed, status)

    def _observe(self, managed: ManagedInstance, status: UnitStatus) -> None:
        model_id = managed.instance.model_id
        managed.enabled = status.enabled
        if managed.is_empty:
            # Somebody else's doing: the file says what it was told, the settings what it runs else.
            model_id = self._files.read_model(status.instance) or managed.desired.model
        self._dispatch(managed, observed(status, model_id))
        self._tell_listeners()

    def _reported(self, name: InstanceName, event: InstanceEvent) -> None:
        managed = self._managed.get(name)
        if managed is not None:
            self._dispatch(managed, event)

    def _request_ended(self, managed: ManagedInstance) -> None:
        managed.last_used = self._clock()
        if not managed.slots.requests and managed.state is InstanceState.DRAINING:
            self._dispatch(managed, Drained())
        self._settle()

    def _dispatch(self, managed: ManagedInstance, event: InstanceEvent) -> None:
        before = managed.instance
        managed.instance, actions = step(before, event)
        if managed.state is not before.state:
            self._state_changed(managed, before)
        for action in actions:
            self._act(managed, action)
        if managed.retired and managed.is_empty:
            self._managed.pop(managed.desired.name, None)
        if managed.instance != before:
            self._settle()

    def _act(self, managed: ManagedInstance, action: Action) -> None:
        name = managed.desired.name
        match action:
            case StartUnit(model_id=model_id):
                self._driver.start(name, model_id, managed.desired.devices, self._reported)
            case StopUnit():
                self._driver.stop(name, self._reported)
            case Drain():
                if not managed.slots.requests:
                    self._dispatch(managed, Drained())

    def _state_changed(self, managed: ManagedInstance, before: Instance) -> None:
        after = managed.instance
        log_change(before, after)
        if after.model_id is None:
            return
        if after.state is InstanceState.READY:
            self._model_ready(managed, after.model_id)
        elif after.state is InstanceState.FAILED:
            self._failures.record(after.model_id, after.reason, now=self._clock())

    def _model_ready(self, managed: ManagedInstance, model_id: ModelId) -> None:
        self._failures.forget(model_id)
        managed.last_used = self._clock()
        if (model := self._settings.models.get(model_id)) is None:
            self._dispatch(managed, UnloadWanted())
        else:
            managed.slots.total = model.parallel

    def _settle(self) -> None:
        """Give waiting models their chance at what just changed, first come first, then tell all."""
        if self._settling:
            return
        if self._waiting.counts:
            self._settling = True
            try:
                for model_id in self._waiting.models():
                    if self._may_seek(model_id):
                        self._seek_instance(model_id)
            finally:
                self._settling = False
        self._waiting.wake()
        self._tell_listeners()

    def _may_seek(self, model_id: ModelId) -> bool:
        """Tell whether a load is worth a try; who waits is told otherwise when it wakes."""
        known = model_id in self._settings.models
        return known and not self.problem_of(model_id) and self._failures.of(model_id) is None

    def _tell_listeners(self) -> None:
        for on_change in self._listeners:
            on_change()

    # -- settings --------------------------------------------------------------------------

    def _apply_instance(self, desired: DesiredInstance) -> None:
        managed = self._managed.get(desired.name)
        if managed is None:
            managed = self._managed[desired.name] = ManagedInstance(desired)
            status = self._control.statuses().get(desired.name)
            if status is not None:
                self._observe(managed, status)
            is_new = managed.is_empty
        else:
            is_new = desired.model != managed.desired.model
            managed.desired = desired
            managed.retired = False
        model_id = desired.model
        if is_new and model_id is not None and not desired.missing and self._may_seek(model_id):
            self._dispatch(managed, LoadWanted(model_id=model_id))

    def _retire(self, managed: ManagedInstance) -> None:
        managed.retired = True
        managed.desired = replace(managed.desired, missing="no longer configured")
        self._dispatch(managed, UnloadWanted())
        if managed.is_empty:
            self._managed.pop(managed.desired.name, None)

    def _follow_models(self, managed: ManagedInstance, changed: frozenset[ModelId]) -> None:
        known, instance = self._settings.models, managed.instance
        if any(model_id in changed - known.keys() for model_id in _models_of(instance)):
            self._dispatch(managed, UnloadWanted())
        elif instance.model_id in changed:
            self._dispatch(managed, RestartWanted())


def _models_of(instance: Instance) -> tuple[ModelId, ...]:
    """Return what it runs and what it is to run next."""
    both = (instance.model_id, instance.next_model_id)
    return tuple(model_id for model_id in both if model_id is not None)
