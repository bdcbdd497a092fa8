"""The owner of all instances of this node: their states, who waits for what, what is done about it.

Single writer: everything here runs on the event loop, between two awaits at a time. Events come in
(requests, unit changes, ends of starts and stops), `transitions.step` and `Placing` decide,
`UnitDriver` acts. `Fleet` adds what requests and operators may ask for.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Final

from rolemesh.agent import upkeep
from rolemesh.agent.adoption import find_model, learn_facts
from rolemesh.agent.desired import DesiredInstance
from rolemesh.agent.failures import Failures
from rolemesh.agent.fleet_memory import FleetMemory
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
from rolemesh.agent.instance_log import log_change, log_wait
from rolemesh.agent.managed_instance import ManagedInstance
from rolemesh.agent.operator_choices import OperatorChoices
from rolemesh.agent.placement_view import Placed, Refused
from rolemesh.agent.placing import Placing
from rolemesh.agent.transitions import step
from rolemesh.agent.unit_control import ActiveState, UnitControl, UnitStatus
from rolemesh.agent.unit_driver import UnitDriver, observed
from rolemesh.agent.waiting import Waiting
from rolemesh.config.settings import NodeSettings
from rolemesh.llama.command import settings_hash
from rolemesh.names import InstanceName, ModelId
from rolemesh.runtime.tasks import TaskScope

TICK_S: Final = 1.0
"""How often patience and idleness are looked at, where any of them counts."""


class FleetCore(ABC):
    """The instances of this node and what happens to them, whoever wants it."""

    def __init__(
        self,
        *,
        control: UnitControl,
        files: InstanceFiles,
        scope: TaskScope,
        settings: NodeSettings,
        memory: FleetMemory | None = None,
        choices: OperatorChoices | None = None,
    ) -> None:
        self._control = control
        self._files = files
        self._settings = settings
        self._driver = UnitDriver(control=control, files=files, scope=scope)
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._managed: dict[InstanceName, ManagedInstance] = {}
        self._failures = Failures()
        self._waiting = Waiting()
        self._memory = memory or FleetMemory()
        self._choices = choices or OperatorChoices()
        self._placing = Placing(settings=settings, waiting=self._waiting, memory=self._memory)
        self._listeners: list[Callable[[], None]] = []
        self._load_s: dict[ModelId, float] = {}
        self._sought: dict[ModelId, Refused | None] = {}
        self._refused: Mapping[ModelId, Refused] | None = None
        self._held_back = 0
        self._is_unsettled = False
        self._ended = False
        self._tick: asyncio.TimerHandle | None = None

    # -- life ------------------------------------------------------------------------------

    def end(self) -> None:
        """Look at units no more: whoever stops them from now on, it is not worth a word."""
        self._ended = True
        if self._tick is not None:
            self._tick.cancel()

    def subscribe(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` after every change of what `snapshot` returns; it must not block."""
        self._listeners.append(on_change)

    def snapshot(self) -> FleetSnapshot:
        """Return all instances as they are now."""
        statuses, failures = self._control.statuses(), self._failures
        managed = tuple(self._managed.values())
        found = {model_id: failures.of(model_id) for model_id in self._settings.models}
        return FleetSnapshot(
            instances=tuple(
                each.snapshot(self._placing.view(each), statuses.get(each.desired.name))
                for each in managed
            ),
            failures={key: failure for key, failure in found.items() if failure is not None},
            refused=self._all_refused(),
            load_s=dict(self._load_s),
            problem=self._choices.problem,
        )

    # -- events ----------------------------------------------------------------------------

    def _unit_changed(self, status: UnitStatus) -> None:
        managed = self._managed.get(status.instance)
        if managed is None or self._ended:
            return
        if not managed.desired.is_foreign or not managed.is_empty:
            self._observe(managed, status)

    def _observe(self, managed: ManagedInstance, status: UnitStatus) -> None:
        model_id, pid_before = managed.instance.model_id, managed.main_pid or status.main_pid
        managed.enabled = status.enabled
        managed.main_pid = status.main_pid
        managed.unit_active = status.active
        if status.result != "success" and status.active is not ActiveState.DEACTIVATING:
            managed.note_failure(status.status_text or f"its unit failed ({status.result})")
        if managed.is_empty or model_id is None:
            model_id = find_model(managed, status, self._files)
        was_ready = managed.state is InstanceState.READY
        self._dispatch(managed, observed(status, model_id))
        if was_ready and model_id and managed.serves(model_id) and pid_before != status.main_pid:
            self._model_ready(managed, model_id)  # restarted faster than its states were seen
        self._tell_listeners()

    def _reported(self, name: InstanceName, event: InstanceEvent) -> None:
        managed = self._managed.get(name)
        if managed is not None:
            self._dispatch(managed, event)

    def _request_ended(self, managed: ManagedInstance) -> None:
        managed.last_used = self._clock()
        if managed.slots.requests:
            return  # nobody waits for that
        if managed.state is InstanceState.DRAINING:
            self._dispatch(managed, Drained())
        self._settle()

    def _dispatch(self, managed: ManagedInstance, event: InstanceEvent) -> None:
        before = managed.instance
        managed.instance, actions = step(before, event)
        if isinstance(event, UnloadWanted):
            managed.is_due = False
        if managed.state is not before.state:
            self._state_changed(managed, before, event)
        for action in actions:
            self._act(managed, action)
        if managed.is_forgettable:
            self._managed.pop(managed.desired.name, None)
        elif managed.is_left_over and before.state is not InstanceState.STOPPING:
            # Its unit may go on trying by itself; nobody would know it any more.
            self._dispatch(managed, UnloadWanted(why="failed"))
        if managed.instance != before:
            self._settle()

    def _act(self, managed: ManagedInstance, action: Action) -> None:
        name = managed.desired.name
        match action:
            case StartUnit(model_id=model_id):
                managed.note_start(self._clock())
                managed.devices, managed.next_devices = managed.next_devices, ()
                others = tuple(self._managed.values())
                told = partial(self._waits_for, managed)
                room = partial(self._placing.until_room, model_id, managed, others, told)
                self._driver.start(
                    name, model_id, managed.devices, room=room, report=self._reported
                )
            case StopUnit():
                self._driver.stop(name, self._reported)
            case Drain():
                if not managed.slots.requests:
                    self._dispatch(managed, Drained())

    def _waits_for(self, managed: ManagedInstance, what: str) -> None:
        """Show and log what a start waits for, "" once that is over."""
        if managed.waits_for != what:
            log_wait(managed.desired.name, before=managed.waits_for, after=what)
            managed.waits_for = what
            self._tell_listeners()

    def _state_changed(
        self, managed: ManagedInstance, before: Instance, event: InstanceEvent
    ) -> None:
        after = managed.instance
        log_change(before, after, event, managed.last_failure)
        self._memory.touch(managed.devices)
        if after.state is not InstanceState.STARTING:
            managed.waits_for = ""
        if after.model_id is None:
            return
        if after.state is InstanceState.READY:
            self._model_ready(managed, after.model_id)
        elif after.state is InstanceState.FAILED:
            managed.note_failure(after.reason)
            self._failures.record(after.model_id, after.reason, now=self._clock())

    def _model_ready(self, managed: ManagedInstance, model_id: ModelId) -> None:
        self._failures.forget(model_id)
        managed.last_used = managed.ready_since = self._clock()
        is_adopted = managed.started_at is None
        learn_facts(managed, self._files)
        facts = managed.facts
        if facts is not None and facts.model_id != model_id:
            # Somebody else told it what to run; the facts are the truth.
            model_id = facts.model_id
            managed.instance = replace(managed.instance, model_id=model_id)
        if model_id == managed.desired.model:
            managed.is_due = False
        if managed.started_at is not None:
            self._load_s[model_id] = managed.load_s = managed.ready_since - managed.started_at
            managed.started_at = None
        if (model := self._settings.models.get(model_id)) is None:
            self._dispatch(managed, UnloadWanted(why="no longer configured"))
            return
        managed.slots.total = model.parallel
        told = facts.settings_hash if facts else ""
        if is_adopted and told and told != settings_hash(self._settings, model):
            # Its settings changed while no agent was there to see it.
            self._dispatch(managed, RestartWanted())

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """Have everything inside count as one change: nobody acts on half of it."""
        self._held_back += 1
        try:
            yield
        finally:
            self._held_back -= 1
        if self._is_unsettled and not self._held_back:
            self._settle()

    def _settle(self) -> None:
        """Give waiting models their chance at what just changed, first come first, then tell all."""
        self._refused, self._is_unsettled = None, True
        if self._held_back:
            return
        with self._at_once():
            self._call_off_drains()
            for model_id in self._waiting.models():
                if self._may_seek(model_id):
                    self._seek_instance(model_id)
            self._is_unsettled = False
        self._refused = None
        self._waiting.wake()
        self._tell_listeners()
        self._tick_soon()

    def _call_off_drains(self) -> None:
        """Let instances go on that drain for a model that nobody waits for any more."""
        counts = self._waiting.counts
        for managed in tuple(self._managed.values()):
            own, following = managed.instance.model_id, managed.instance.next_model_id
            drains = managed.state is InstanceState.DRAINING and managed.is_for_waiting
            if drains and own and own in counts and following not in counts:
                self._dispatch(managed, LoadWanted(model_id=own))

    def _all_refused(self) -> Mapping[ModelId, Refused]:
        """Return the models that no instance can take now, and why."""
        if self._refused is None:
            managed = tuple(self._managed.values())
            placed = {each: self._placing.place(each, managed) for each in self._settings.models}
            self._refused = {
                model_id: each for model_id, each in placed.items() if isinstance(each, Refused)
            }
        return self._refused

    def _seek_instance(self, model_id: ModelId) -> None:
        """Set an instance on its way to the model unless one is; `_sought` says why none can be."""
        if not self._placing.has_looked_at(model_id):
            self._sought[model_id] = None
            return
        placed = self._placing.place(model_id, self._managed.values())
        self._sought[model_id] = placed if isinstance(placed, Refused) else None
        if isinstance(placed, Placed) and not placed.joins:
            self._load(model_id, placed)
            self._managed[placed.instance].is_for_waiting = True

    def _load(self, model_id: ModelId, placed: Placed) -> None:
        """Load a model where it was placed; those who make room for it leave first."""
        if placed.joins:
            return
        with self._at_once():
            managed = self._managed.get(placed.instance) or self._new_extra(placed)
            managed.next_devices, managed.evicts = placed.devices, placed.evicts
            managed.is_for_waiting = False
            for name in placed.evicts:
                why = f"makes room for {model_id} on {placed.instance}"
                self._dispatch(self._managed[name], UnloadWanted(why=why))
            if model_id != managed.desired.model:
                managed.is_due = False
            self._dispatch(managed, LoadWanted(model_id=model_id))

    def _new_extra(self, placed: Placed) -> ManagedInstance:
        return self._manage(
            DesiredInstance(
                name=placed.instance, devices=placed.devices, is_extra=True, is_fixed=True
            )
        )

    def _manage(self, desired: DesiredInstance) -> ManagedInstance:
        """Begin to look after an instance."""
        managed = self._managed[desired.name] = ManagedInstance(desired)
        managed.pinned = self._choices.pinned(desired.name)
        managed.is_drained = self._choices.is_drained(desired.name)
        return managed

    # -- what time brings ------------------------------------------------------------------

    def _tick_soon(self) -> None:
        due = any(managed.is_due for managed in self._managed.values())
        waits = due or self._waiting.counts or upkeep.wants_upkeep(self._settings)
        if waits and self._tick is None and not self._ended:
            self._tick = self._loop.call_later(TICK_S, self._on_tick)

    def _on_tick(self) -> None:
        self._tick = None
        with self._at_once():
            self._look_after()
            self._is_unsettled = True

    @abstractmethod
    def _look_after(self) -> None:
        """Do what is due without being asked."""

    def _may_seek(self, model_id: ModelId) -> bool:
        """Tell whether a load is worth a try; who waits is told otherwise when it wakes."""
        failure = self._failures.of(model_id)
        return (
            model_id in self._settings.models
            and not self._placing.problem_of(model_id)
            and (failure is None or failure.retry_at <= self._clock())
        )

    def _tell_listeners(self) -> None:
        for on_change in self._listeners:
            on_change()
