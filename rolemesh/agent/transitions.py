"""The state machine of one instance: (instance, event) -> (instance, actions); pure.

    stopped --load--> starting --unit activating--> loading --unit active--> ready
    ready --load of another model, or unload--> draining --last lease--> stopping --> stopped
    stopping --next model--> starting
    starting | loading --start failed--> failed --load--> stopping
    ready --crash: unit activates again--> loading --crashes again--> failed --it works--> ready
    any but stopped --its GPU is lost--> stopping
    any --processes that cannot be killed--> stuck --they are gone--> stopped

An event that means nothing in a state leaves it as it is: observations come late and repeated.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from rolemesh.agent.instance import (
    Action,
    ActionFailed,
    DeviceLost,
    Drain,
    Drained,
    Instance,
    InstanceEvent,
    InstanceState,
    LoadWanted,
    RestartWanted,
    StartUnit,
    StopUnit,
    StuckProcesses,
    UnitObserved,
    UnitStopped,
    UnloadWanted,
)
from rolemesh.agent.unit_control import ActiveState
from rolemesh.names import ModelId

Step = tuple[Instance, tuple[Action, ...]]

STOPPED_OUTSIDE = "stopped outside the agent"


def step(instance: Instance, event: InstanceEvent) -> Step:
    """Return what the instance becomes by `event` and what is to be done about it."""
    match event:
        case UnitObserved() if event.stuck_pids:
            return _stuck(instance, _stuck_text(event.stuck_pids)), ()
        case UnitObserved():
            return _OBSERVED[instance.state](instance, event)
        case LoadWanted() | RestartWanted() | UnloadWanted():
            return _on_wish(instance, event)
        case _:
            return _on_outcome(instance, event)


def _on_wish(instance: Instance, wish: LoadWanted | RestartWanted | UnloadWanted) -> Step:
    match wish:
        case LoadWanted(model_id=model_id):
            return _on_load_wanted(instance, model_id)
        case RestartWanted():
            return _on_restart_wanted(instance)
        case UnloadWanted():
            return _on_unload_wanted(instance)


def _on_outcome(
    instance: Instance, event: Drained | ActionFailed | DeviceLost | StuckProcesses | UnitStopped
) -> Step:
    match event:
        case Drained():
            return _on_drained(instance)
        case ActionFailed(reason=reason):
            return _on_action_failed(instance, reason), ()
        case DeviceLost(reason=reason):
            return _on_device_lost(instance, reason)
        case StuckProcesses(reason=reason) if instance.state is InstanceState.STOPPING:
            return _stuck(instance, reason), ()
        case StuckProcesses():
            return instance, ()  # they are gone since
        case UnitStopped():
            return _on_unit_stopped(instance)


def _on_load_wanted(instance: Instance, model_id: ModelId) -> Step:
    match instance.state:
        case InstanceState.STOPPED:
            return _start(instance, model_id)
        case InstanceState.FAILED:
            # Its unit may be trying again by itself, with what it was told before: stop that first.
            return _stop(instance, next_model_id=model_id)
        case InstanceState.READY if instance.model_id != model_id:
            return _drain(instance, next_model_id=model_id)
        case InstanceState.DRAINING if instance.model_id == model_id:
            return replace(instance, state=InstanceState.READY, next_model_id=None), ()
        case InstanceState.DRAINING | InstanceState.STOPPING:
            return replace(instance, next_model_id=model_id), ()
        case (
            InstanceState.READY
            | InstanceState.STARTING
            | InstanceState.LOADING
            | InstanceState.STUCK
        ):
            return instance, ()


def _on_restart_wanted(instance: Instance) -> Step:
    match instance.state:
        case InstanceState.READY:
            return _drain(instance, next_model_id=instance.model_id)
        case InstanceState.STARTING | InstanceState.LOADING:
            return _stop(instance, next_model_id=instance.model_id)
        case _:
            return instance, ()


def _on_unload_wanted(instance: Instance) -> Step:
    match instance.state:
        case InstanceState.STOPPED | InstanceState.STUCK:
            return instance, ()
        case InstanceState.READY:
            return _drain(instance, next_model_id=None)
        case InstanceState.DRAINING | InstanceState.STOPPING:
            return replace(instance, next_model_id=None), ()
        case InstanceState.STARTING | InstanceState.LOADING | InstanceState.FAILED:
            # Also of a failed one: its unit may be about to restart by itself.
            return _stop(instance)


def _on_action_failed(instance: Instance, reason: str) -> Instance:
    match instance.state:
        case InstanceState.STARTING | InstanceState.LOADING | InstanceState.FAILED:
            return replace(instance, state=InstanceState.FAILED, reason=reason)
        case InstanceState.STOPPING:
            bound_for = instance.next_model_id or instance.model_id
            return Instance(
                name=instance.name, state=InstanceState.FAILED, model_id=bound_for, reason=reason
            )
        case _:
            return instance


def _on_device_lost(instance: Instance, reason: str) -> Step:
    """Stop at once: requests under way are lost with the card."""
    match instance.state:
        case InstanceState.STOPPED | InstanceState.STUCK:
            return instance, ()
        case InstanceState.STOPPING:
            return replace(instance, next_model_id=None, reason=reason), ()
        case _:
            return _stop(instance, reason=reason)


def _on_drained(instance: Instance) -> Step:
    if instance.state is InstanceState.DRAINING:
        return replace(instance, state=InstanceState.STOPPING), (StopUnit(),)
    return instance, ()


def _on_unit_stopped(instance: Instance) -> Step:
    if instance.state is not InstanceState.STOPPING:
        return instance, ()
    if instance.next_model_id is not None:
        return _start(instance, instance.next_model_id)
    return _stopped(instance, reason=instance.reason), ()


def _observed_while_stopped(instance: Instance, unit: UnitObserved) -> Instance:
    """Follow what somebody else (or an earlier agent) started or stopped."""
    match unit.active:
        case ActiveState.ACTIVE:
            return _ready(instance, unit)
        case ActiveState.ACTIVATING:
            return _loading(replace(instance, model_id=unit.model_id), unit)
        case ActiveState.FAILED:
            return _failed(instance, unit)
        case ActiveState.INACTIVE | ActiveState.DEACTIVATING:
            return instance


def _observed_while_starting(instance: Instance, unit: UnitObserved) -> Instance:
    """Wait for the unit to move; anything else is the echo of its past."""
    match unit.active:
        case ActiveState.ACTIVE:
            return _ready(instance, unit)
        case ActiveState.ACTIVATING:
            return _loading(instance, unit)
        case ActiveState.INACTIVE | ActiveState.DEACTIVATING | ActiveState.FAILED:
            return instance


def _observed_while_loading(instance: Instance, unit: UnitObserved) -> Instance:
    match unit.active:
        case ActiveState.ACTIVE:
            return _ready(instance, unit)
        case ActiveState.ACTIVATING if unit.failing and unit.restarts > instance.restarts:
            # It failed again after an automatic restart: whoever waits is to be told.
            return _failed(instance, unit)
        case ActiveState.FAILED:
            return _failed(instance, unit)
        case ActiveState.INACTIVE:
            return _stopped(instance, reason=_why_stopped(unit))
        case ActiveState.ACTIVATING | ActiveState.DEACTIVATING:
            return instance


def _observed_while_ready(instance: Instance, unit: UnitObserved) -> Instance:
    match unit.active:
        case ActiveState.ACTIVE:
            return replace(instance, restarts=unit.restarts)
        case ActiveState.ACTIVATING:
            return _loading(instance, unit)
        case ActiveState.DEACTIVATING if unit.failing:
            return _loading(instance, unit)  # by the watchdog: its restart follows
        case ActiveState.DEACTIVATING:
            # A job of ours would replace that of who stops or restarts it.
            return replace(instance, state=InstanceState.STOPPING, by_others=True)
        case ActiveState.FAILED:
            return _failed(instance, unit)
        case ActiveState.INACTIVE:
            return _stopped(instance, reason=_why_stopped(unit))


def _observed_while_failed(instance: Instance, unit: UnitObserved) -> Instance:
    match unit.active:
        case ActiveState.ACTIVE:
            return _ready(instance, unit)
        case ActiveState.ACTIVATING if unit.restarts == 0 and not unit.failing:
            # Started anew by hand; its automatic restarts go on counting.
            return _loading(instance, unit)
        case ActiveState.FAILED:
            return _failed(instance, unit)
        case ActiveState.ACTIVATING | ActiveState.INACTIVE | ActiveState.DEACTIVATING:
            return instance


def _observed_while_draining(instance: Instance, unit: UnitObserved) -> Step:
    if unit.active in {ActiveState.INACTIVE, ActiveState.FAILED}:
        return replace(instance, state=InstanceState.STOPPING), (StopUnit(),)
    return instance, ()


def _observed_while_stuck(instance: Instance, unit: UnitObserved) -> Instance:
    match unit.active:
        case ActiveState.ACTIVE:
            return _ready(instance, unit)
        case ActiveState.INACTIVE | ActiveState.FAILED:
            return _stopped(instance, reason="")
        case ActiveState.ACTIVATING | ActiveState.DEACTIVATING:
            return instance


def _observed_while_stopping(instance: Instance, unit: UnitObserved) -> Step:
    """Wait for UnitStopped: the unit may be down before its last process is gone."""
    if not instance.by_others:
        return instance, ()
    match unit.active:
        case ActiveState.INACTIVE | ActiveState.FAILED if instance.next_model_id is not None:
            return _start(instance, instance.next_model_id)
        case ActiveState.INACTIVE:
            return _stopped(instance, reason=_why_stopped(unit)), ()
        case ActiveState.FAILED:
            return replace(_failed(instance, unit), by_others=False), ()
        case ActiveState.ACTIVATING:
            return replace(_loading(instance, unit), by_others=False), ()
        case ActiveState.ACTIVE:
            return replace(_ready(instance, unit), by_others=False), ()
        case ActiveState.DEACTIVATING:
            return instance, ()


def _without_action(
    observe: Callable[[Instance, UnitObserved], Instance],
) -> Callable[[Instance, UnitObserved], Step]:
    return lambda instance, unit: (observe(instance, unit), ())


_OBSERVED: Final[Mapping[InstanceState, Callable[[Instance, UnitObserved], Step]]] = (
    MappingProxyType(
        {
            InstanceState.STOPPED: _without_action(_observed_while_stopped),
            InstanceState.STARTING: _without_action(_observed_while_starting),
            InstanceState.LOADING: _without_action(_observed_while_loading),
            InstanceState.READY: _without_action(_observed_while_ready),
            InstanceState.FAILED: _without_action(_observed_while_failed),
            InstanceState.DRAINING: _observed_while_draining,
            InstanceState.STOPPING: _observed_while_stopping,
            InstanceState.STUCK: _without_action(_observed_while_stuck),
        }
    )
)


def _start(instance: Instance, model_id: ModelId) -> Step:
    starting = Instance(name=instance.name, state=InstanceState.STARTING, model_id=model_id)
    return starting, (StartUnit(model_id=model_id),)


def _drain(instance: Instance, *, next_model_id: ModelId | None) -> Step:
    draining = replace(instance, state=InstanceState.DRAINING, next_model_id=next_model_id)
    return draining, (Drain(),)


def _stop(instance: Instance, *, next_model_id: ModelId | None = None, reason: str = "") -> Step:
    stopping = replace(
        instance, state=InstanceState.STOPPING, next_model_id=next_model_id, reason=reason
    )
    return stopping, (StopUnit(),)


def _stopped(instance: Instance, *, reason: str) -> Instance:
    return Instance(name=instance.name, reason=reason)


def _stuck(instance: Instance, reason: str) -> Instance:
    return replace(instance, state=InstanceState.STUCK, next_model_id=None, reason=reason)


def _stuck_text(pids: tuple[int, ...]) -> str:
    return f"processes cannot be killed: {', '.join(map(str, pids))}"


def _why_stopped(unit: UnitObserved) -> str:
    """Return why a unit stops that the agent did not stop."""
    return f"{unit.result}: {unit.status_text}" if unit.failing else STOPPED_OUTSIDE


def _loading(instance: Instance, unit: UnitObserved) -> Instance:
    return replace(instance, state=InstanceState.LOADING, restarts=unit.restarts, reason="")


def _ready(instance: Instance, unit: UnitObserved) -> Instance:
    return replace(
        instance,
        state=InstanceState.READY,
        model_id=unit.model_id or instance.model_id,
        restarts=unit.restarts,
        reason="",
    )


def _failed(instance: Instance, unit: UnitObserved) -> Instance:
    return replace(
        instance,
        state=InstanceState.FAILED,
        restarts=unit.restarts,
        reason=unit.status_text or f"its unit failed ({unit.result})",
    )
