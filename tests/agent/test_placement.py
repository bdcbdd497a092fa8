"""Where a model runs, and why not."""

from typing import Any

import pytest

from rolemesh.agent.instance import InstanceState
from rolemesh.agent.placement import Placed, PlacementView, Refused, place_model
from rolemesh.names import InstanceName, ModelId

WANTED = ModelId("wanted")


def view(
    name: str, state: str = "stopped", model: str | None = None, **others: Any
) -> PlacementView:
    return PlacementView(
        name=InstanceName(name),
        state=InstanceState(state),
        model_id=None if model is None else ModelId(model),
        **others,
    )


def ready(name: str, model: str, **others: Any) -> PlacementView:
    return view(name, "ready", model, **others)


PLACED: list[tuple[str, list[PlacementView], str, bool]] = [
    ("ready", [view("gpu0"), ready("gpu1", "wanted")], "gpu1", True),
    ("ready and busy", [view("gpu0"), ready("gpu1", "wanted", leases=3)], "gpu1", True),
    ("loading", [view("gpu0"), view("gpu1", "loading", "wanted")], "gpu1", True),
    ("starting", [view("gpu0"), view("gpu1", "starting", "wanted")], "gpu1", True),
    (
        "on its way after a stop",
        [view("gpu0"), view("gpu1", "stopping", "other", next_model_id=WANTED)],
        "gpu1",
        True,
    ),
    (
        "on its way after a drain",
        [view("gpu0"), view("gpu1", "draining", "other", next_model_id=WANTED)],
        "gpu1",
        True,
    ),
    ("leaving is not having", [view("gpu0"), view("gpu1", "draining", "wanted")], "gpu0", False),
    ("a failed one is empty", [view("gpu0", "failed", "wanted")], "gpu0", False),
    ("assigned", [view("gpu0"), view("gpu1", assigned=WANTED)], "gpu1", False),
    (
        "assigned and idle with another",
        [view("gpu0"), ready("gpu1", "other", assigned=WANTED)],
        "gpu1",
        False,
    ),
    (
        "assigned, pinned and idle with another",
        [view("gpu0"), ready("gpu1", "other", assigned=WANTED, pinned=True)],
        "gpu1",
        False,
    ),
    (
        "assigned but busy with another",
        [view("gpu0"), ready("gpu1", "other", assigned=WANTED, leases=1)],
        "gpu0",
        False,
    ),
    ("empty gpu before empty cpu", [view("cpu0"), view("gpu3")], "gpu3", False),
    ("empty cpu before a switch", [ready("gpu0", "other"), view("cpu0")], "cpu0", False),
    (
        "unclaimed before claimed",
        [view("gpu0", assigned=ModelId("other")), view("gpu1")],
        "gpu1",
        False,
    ),
    ("claimed rather than none", [view("gpu0", assigned=ModelId("other"))], "gpu0", False),
    ("never tried before failed", [view("gpu0", "failed", "x"), view("gpu1")], "gpu1", False),
    (
        "least recently used",
        [ready("gpu0", "a", last_used=9.0), ready("gpu1", "b", last_used=5.0)],
        "gpu1",
        False,
    ),
    (
        "not the busy one",
        [ready("gpu0", "a", last_used=9.0), ready("gpu1", "b", last_used=5.0, leases=1)],
        "gpu0",
        False,
    ),
    (
        "not the one that requests wait for",
        [ready("gpu0", "a", last_used=9.0), ready("gpu1", "b", last_used=5.0, waiting=1)],
        "gpu0",
        False,
    ),
    (
        "not the pinned one",
        [ready("gpu0", "a", last_used=9.0), ready("gpu1", "b", last_used=5.0, pinned=True)],
        "gpu0",
        False,
    ),
    ("not the missing one", [view("gpu0", missing="gone"), view("cpu0")], "cpu0", False),
]


@pytest.mark.parametrize(
    ("views", "instance", "joins"),
    [case[1:] for case in PLACED],
    ids=[case[0] for case in PLACED],
)
def test_a_model_is_placed_on(views: list[PlacementView], instance: str, joins: bool) -> None:
    assert place_model(WANTED, views) == Placed(instance=InstanceName(instance), joins=joins)


@pytest.mark.parametrize(
    ("refusing", "reason", "may_pass"),
    [
        (view("gpu0", missing="gpu0 is not there"), "gpu0 is not there", False),
        (view("gpu0", assigned=ModelId("other"), pinned=True), "pinned to other", False),
        (ready("gpu0", "other", pinned=True), "pinned, runs other", False),
        (ready("gpu0", "other", leases=2), "busy with other (requests: 2)", True),
        (ready("gpu0", "other", waiting=1), "requests wait for its other", True),
        (view("gpu0", "loading", "other"), "is loading other", True),
        (view("gpu0", "starting", "other"), "is loading other", True),
        (view("gpu0", "draining", "other"), "is draining other", True),
        (view("gpu0", "stopping", "other"), "is stopping other", True),
    ],
)
def test_an_instance_that_cannot_take_a_model_says_why_and_whether_that_passes(
    refusing: PlacementView, reason: str, may_pass: bool
) -> None:
    refused = place_model(WANTED, [refusing])
    assert refused == Refused(reasons={InstanceName("gpu0"): reason}, may_pass=may_pass)


def test_one_instance_that_may_become_free_is_worth_waiting_for() -> None:
    views = [view("gpu0", missing="gone"), ready("gpu1", "other", leases=1)]
    refused = place_model(WANTED, views)
    assert isinstance(refused, Refused)
    assert refused.may_pass
    assert str(refused) == "gpu0: gone; gpu1: busy with other (requests: 1)"


def test_no_instance_at_all_is_said() -> None:
    assert str(place_model(WANTED, [])) == "this node has no instance"
