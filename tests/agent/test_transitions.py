"""The state machine of an instance, row by row."""

import itertools
from typing import Any

import pytest

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
from rolemesh.agent.transitions import step
from rolemesh.agent.unit_control import ActiveState
from rolemesh.names import InstanceName, ModelId

A, B = ModelId("a"), ModelId("b")


def instance(state: str, model: ModelId | None = A, **others: Any) -> Instance:
    return Instance(name=InstanceName("gpu0"), state=InstanceState(state), model_id=model, **others)


def unit(active: str, **others: Any) -> UnitObserved:
    others.setdefault("model_id", A)
    return UnitObserved(active=ActiveState(active), **others)


def crashed(active: str, **others: Any) -> UnitObserved:
    return unit(active, result="exit-code", status_text="out of memory", **others)


EMPTY = instance("stopped", None)
LOAD_A, LOAD_B = LoadWanted(model_id=A), LoadWanted(model_id=B)
START_A, START_B, STOP = StartUnit(model_id=A), StartUnit(model_id=B), StopUnit()

ROWS: list[tuple[Instance, InstanceEvent, Instance, tuple[Action, ...]]] = [
    # a load on demand
    (EMPTY, LOAD_A, instance("starting"), (START_A,)),
    (instance("starting"), unit("activating"), instance("loading"), ()),
    (instance("starting"), unit("active"), instance("ready"), ()),
    (instance("loading"), unit("active"), instance("ready"), ()),
    (instance("starting"), LOAD_A, instance("starting"), ()),
    (instance("loading"), LOAD_A, instance("loading"), ()),
    (instance("ready"), LOAD_A, instance("ready"), ()),
    # what a unit was before it starts is no news
    (instance("starting"), unit("failed"), instance("starting"), ()),
    (instance("starting"), unit("inactive"), instance("starting"), ()),
    (instance("starting"), unit("deactivating"), instance("starting"), ()),
    # a load that fails
    (instance("starting"), ActionFailed(reason="x"), instance("failed", reason="x"), ()),
    (instance("loading"), ActionFailed(reason="x"), instance("failed", reason="x"), ()),
    (instance("loading"), crashed("failed"), instance("failed", reason="out of memory"), ()),
    (
        instance("loading"),
        unit("failed"),
        instance("failed", reason="its unit failed (success)"),
        (),
    ),
    (
        instance("failed", reason="x"),
        ActionFailed(reason="y"),
        instance("failed", reason="y"),
        (),
    ),
    (
        instance("failed", reason="x"),
        LOAD_B,
        instance("stopping", next_model_id=B),
        (STOP,),
    ),
    # a switch
    (instance("ready"), LOAD_B, instance("draining", next_model_id=B), (Drain(),)),
    (
        instance("draining", next_model_id=B),
        Drained(),
        instance("stopping", next_model_id=B),
        (STOP,),
    ),
    (
        instance("stopping", next_model_id=B),
        UnitStopped(),
        instance("starting", B),
        (START_B,),
    ),
    # an unload, and second thoughts about it
    (instance("ready"), UnloadWanted(), instance("draining"), (Drain(),)),
    (instance("draining"), LOAD_A, instance("ready"), ()),
    (instance("draining", next_model_id=B), LOAD_A, instance("ready"), ()),
    (instance("draining"), LOAD_B, instance("draining", next_model_id=B), ()),
    (instance("draining", next_model_id=B), UnloadWanted(), instance("draining"), ()),
    (instance("draining"), Drained(), instance("stopping"), (STOP,)),
    (instance("stopping"), LOAD_A, instance("stopping", next_model_id=A), ()),
    (instance("stopping", next_model_id=B), UnloadWanted(), instance("stopping"), ()),
    (instance("stopping"), UnitStopped(), EMPTY, ()),
    (instance("starting"), UnloadWanted(), instance("stopping"), (STOP,)),
    (instance("loading"), UnloadWanted(), instance("stopping"), (STOP,)),
    (instance("failed", reason="x"), UnloadWanted(), instance("stopping"), (STOP,)),
    (EMPTY, UnloadWanted(), EMPTY, ()),
    # a restart with new settings
    (instance("ready"), RestartWanted(), instance("draining", next_model_id=A), (Drain(),)),
    (instance("loading"), RestartWanted(), instance("stopping", next_model_id=A), (STOP,)),
    (instance("failed"), RestartWanted(), instance("failed"), ()),
    (EMPTY, RestartWanted(), EMPTY, ()),
    # a crash: the unit restarts by itself; failing again is told
    (instance("ready"), crashed("activating"), instance("loading"), ()),
    (
        instance("ready", restarts=3),
        crashed("activating", restarts=3),
        instance("loading", restarts=3),
        (),
    ),
    (instance("loading"), unit("activating", restarts=1), instance("loading"), ()),
    (
        instance("loading"),
        crashed("activating", restarts=1),
        instance("failed", restarts=1, reason="out of memory"),
        (),
    ),
    (instance("failed"), unit("activating", restarts=2), instance("failed"), ()),
    (
        instance("failed", reason="x"),
        unit("active", restarts=2),
        instance("ready", restarts=2),
        (),
    ),
    (instance("ready"), crashed("failed"), instance("failed", reason="out of memory"), ()),
    (instance("draining"), unit("failed"), instance("stopping"), (STOP,)),
    (instance("draining"), unit("inactive"), instance("stopping"), (STOP,)),
    (instance("draining"), unit("activating"), instance("draining"), ()),
    # what others do by hand
    (EMPTY, unit("active"), instance("ready"), ()),
    (EMPTY, unit("activating", model_id=B), instance("loading", B), ()),
    (EMPTY, unit("inactive"), EMPTY, ()),
    (EMPTY, unit("deactivating"), EMPTY, ()),
    (
        EMPTY,
        crashed("failed"),
        instance("failed", None, reason="out of memory"),
        (),
    ),
    (
        instance("ready"),
        unit("deactivating"),
        instance("stopping", by_others=True),
        (),
    ),
    (
        instance("stopping", by_others=True),
        unit("inactive"),
        instance("stopped", None, reason="stopped outside the agent"),
        (),
    ),
    (instance("stopping", by_others=True), unit("activating"), instance("loading"), ()),
    (instance("stopping", by_others=True), unit("active"), instance("ready"), ()),
    (
        instance("stopping", by_others=True),
        LOAD_B,
        instance("stopping", next_model_id=B, by_others=True),
        (),
    ),
    (
        instance("stopping", next_model_id=B, by_others=True),
        unit("inactive"),
        instance("starting", B),
        (START_B,),
    ),
    (
        instance("ready"),
        unit("deactivating", result="watchdog", status_text="silent"),
        instance("loading"),
        (),
    ),
    (
        instance("loading"),
        unit("inactive"),
        instance("stopped", None, reason="stopped outside the agent"),
        (),
    ),
    (instance("loading"), unit("deactivating"), instance("loading"), ()),
    (instance("failed", reason="x"), unit("activating", model_id=B), instance("loading"), ()),
    (instance("failed", reason="x"), unit("inactive"), instance("failed", reason="x"), ()),
    # a card that is lost, processes that cannot be killed
    (instance("ready"), DeviceLost(reason="x"), instance("stopping", reason="x"), (STOP,)),
    (
        instance("draining", next_model_id=B),
        DeviceLost(reason="x"),
        instance("stopping", reason="x"),
        (STOP,),
    ),
    (EMPTY, DeviceLost(reason="x"), EMPTY, ()),
    (instance("stopping"), StuckProcesses(reason="x"), instance("stuck", reason="x"), ()),
    (EMPTY, StuckProcesses(reason="x"), EMPTY, ()),
    (instance("stuck", reason="x"), unit("inactive"), EMPTY, ()),
    (instance("stuck", reason="x"), LOAD_B, instance("stuck", reason="x"), ()),
    (instance("stuck", reason="x"), UnloadWanted(), instance("stuck", reason="x"), ()),
    # a stop that does not come true
    (
        instance("stopping", next_model_id=B),
        ActionFailed(reason="stuck"),
        instance("failed", B, reason="stuck"),
        (),
    ),
    (instance("stopping"), unit("inactive"), instance("stopping"), ()),
    (instance("stopping"), unit("activating"), instance("stopping"), ()),
]


@pytest.mark.parametrize(
    ("before", "event", "after", "actions"),
    ROWS,
    ids=[f"{row[0].state.value}-{type(row[1]).__name__}-{n}" for n, row in enumerate(ROWS)],
)
def test_an_event_leads_to(
    before: Instance, event: InstanceEvent, after: Instance, actions: tuple[Action, ...]
) -> None:
    assert step(before, event) == (after, actions)


EVENTS: list[InstanceEvent] = [
    LOAD_A,
    LOAD_B,
    RestartWanted(),
    UnloadWanted(),
    Drained(),
    ActionFailed(reason="x"),
    UnitStopped(),
    *(unit(active.value) for active in ActiveState),
    *(crashed(active.value, restarts=5) for active in ActiveState),
]
INSTANCES = [
    instance(state.value, model, next_model_id=following)
    for state in InstanceState
    for model in (A, None)
    for following in (None, B)
]


@pytest.mark.parametrize(("before", "event"), list(itertools.product(INSTANCES, EVENTS)))
def test_every_event_in_every_state_is_answered_with_at_most_one_action(
    before: Instance, event: InstanceEvent
) -> None:
    after, actions = step(before, event)
    assert after.name == before.name
    assert len(actions) <= 1
    if StopUnit() in actions:
        assert after.state is InstanceState.STOPPING
    if any(isinstance(action, StartUnit) for action in actions):
        assert after.state is InstanceState.STARTING


@pytest.mark.parametrize("event", [Drained(), UnitStopped(), ActionFailed(reason="late")])
def test_late_outcomes_change_nothing_once_the_instance_is_ready(event: InstanceEvent) -> None:
    assert step(instance("ready"), event) == (instance("ready"), ())
