"""Where a model runs, and why not."""

from typing import Any

import pytest

from rolemesh.agent.instance import InstanceState
from rolemesh.agent.placement import place_model
from rolemesh.agent.placement_view import (
    Placed,
    PlacementView,
    Refused,
    Room,
    Surroundings,
    Wanted,
)
from rolemesh.llama.memory import MemoryNeed
from rolemesh.names import InstanceName, ModelId

WANTED = ModelId("wanted")
GIB = 1024**3


def view(
    name: str, state: str = "stopped", model: str | None = None, **others: Any
) -> PlacementView:
    gib = others.pop("gib", None)
    own = (f"GPU-{name[3:].partition('-')[0]}",) if name.startswith("gpu") else ()
    return PlacementView(
        name=InstanceName(name),
        state=InstanceState(state),
        model_id=None if model is None else ModelId(model),
        devices=others.pop("devices", own),
        need=None if gib is None else MemoryNeed(weights=int(gib * GIB)),
        **others,
    )


def place(
    views: list[PlacementView],
    *,
    gib: float | None = None,
    gpus: int | None = None,
    waited_s: float = 0.0,
    rooms: dict[int, float] | None = None,
    foreign: dict[int, float] | None = None,
    ram: float | None = None,
    may_share: bool = False,
) -> Placed | Refused:
    """Place `wanted`, which needs `gib`; `rooms` are the sizes of the GPUs, all in GiB."""
    built = {
        f"GPU-{number}": Room(
            name=f"gpu{number}",
            total=int(size * GIB),
            foreign=int((foreign or {}).get(number, 0) * GIB),
        )
        for number, size in (rooms or {}).items()
    }
    if ram is not None:
        built[""] = Room(name="the machine's memory", total=int(ram * GIB))
    return place_model(
        Wanted(
            model_id=WANTED,
            need=None if gib is None else MemoryNeed(weights=int(gib * GIB)),
            gpus=gpus,
            waited_s=waited_s,
        ),
        views,
        Surroundings(rooms=built, may_share=may_share),
        now=1000.0,
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
    placed = place(views)
    assert isinstance(placed, Placed)
    assert (placed.instance, placed.joins, placed.evicts) == (instance, joins, ())


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
    refused = place([refusing])
    assert refused == Refused(reasons={InstanceName("gpu0"): reason}, may_pass=may_pass)


def test_one_instance_that_may_become_free_is_worth_waiting_for() -> None:
    views = [view("gpu0", missing="gone"), ready("gpu1", "other", leases=1)]
    refused = place(views)
    assert isinstance(refused, Refused)
    assert refused.may_pass
    assert str(refused) == "gpu0: gone; gpu1: busy with other (requests: 1)"


def test_no_instance_at_all_is_said() -> None:
    assert str(place([])) == "this node has no instance"


# --- patience -------------------------------------------------------------------------------


def test_who_has_waited_long_enough_has_a_busy_instance_finish_and_leave() -> None:
    busy = ready("gpu0", "other", leases=1, ready_since=900.0)
    assert isinstance(place([busy], waited_s=29), Refused)
    assert place([busy], waited_s=30) == Placed(instance=busy.name, devices=("GPU-0",))


def test_a_model_stays_a_while_before_it_is_switched_busy() -> None:
    fresh = ready("gpu0", "other", leases=1, ready_since=941.0)
    assert isinstance(place([fresh], waited_s=1000), Refused)


@pytest.mark.parametrize("others", [{"pinned": True}, {"missing": "gone"}])
def test_patience_displaces_nobody_who_is_pinned_or_away(others: dict[str, Any]) -> None:
    refused = place([ready("gpu0", "other", leases=1, **others)], waited_s=1000)
    assert isinstance(refused, Refused)
    assert not refused.may_pass


def test_an_idle_instance_is_displaced_before_a_busy_one() -> None:
    views = [ready("gpu0", "a", leases=1), ready("gpu1", "b", last_used=999.0)]
    placed = place(views, waited_s=1000)
    assert isinstance(placed, Placed)
    assert placed.instance == "gpu1"


def test_a_stuck_instance_takes_nothing_and_does_not_pass() -> None:
    refused = place([view("gpu0", "stuck", "other")], waited_s=1000)
    assert refused == Refused(reasons={InstanceName("gpu0"): "stuck with other"}, may_pass=False)


# --- memory ---------------------------------------------------------------------------------


def test_a_model_goes_where_it_fits() -> None:
    placed = place([view("gpu0"), view("gpu1")], gib=9, rooms={0: 8, 1: 10})
    assert placed == Placed(instance=InstanceName("gpu1"), devices=("GPU-1",))


def test_a_model_goes_where_most_memory_stays_free() -> None:
    placed = place([view("gpu0"), view("gpu1")], gib=5, rooms={0: 8, 1: 24})
    assert isinstance(placed, Placed)
    assert placed.instance == "gpu1"


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    refused = place(
        [view("gpu0"), ready("gpu1", "a", gib=2, pinned=True)],
        gib=9.1,
        rooms={0: 8, 1: 10},
        foreign={0: 2.8},
        gpus=1,
    )
    assert isinstance(refused, Refused)
    assert not refused.may_pass
    assert str(refused) == (
        "it needs 9.1 GiB; gpu0: 5.2 GiB free of 8.0 GiB (taken: others 2.8 GiB); "
        "gpu1: pinned, runs a"
    )


def test_an_idle_neighbour_leaves_when_it_is_in_the_way() -> None:
    views = [view("gpu0"), ready("gpu0-small", "small", gib=4)]
    placed = place(views, gib=6, rooms={0: 8})
    assert placed == Placed(
        instance=InstanceName("gpu0"), devices=("GPU-0",), evicts=(InstanceName("gpu0-small"),)
    )


def test_a_neighbour_beside_which_there_is_room_stays() -> None:
    views = [view("gpu0"), ready("gpu0-small", "small", gib=1)]
    assert place(views, gib=6, rooms={0: 8}) == Placed(
        instance=InstanceName("gpu0"), devices=("GPU-0",)
    )


def test_a_busy_neighbour_in_the_way_is_waited_for() -> None:
    views = [view("gpu0"), ready("gpu0-small", "small", gib=4, leases=1)]
    refused = place(views, gib=6, rooms={0: 8})
    assert isinstance(refused, Refused)
    assert refused.may_pass
    text = "4.0 GiB free (gpu0-small busy with small (requests: 1))"
    assert refused.reasons[InstanceName("gpu0")] == text


def test_a_busy_instance_is_not_waited_for_where_the_model_never_fits() -> None:
    refused = place([ready("gpu0", "a", leases=1, gib=5)], gib=9, rooms={0: 8})
    assert isinstance(refused, Refused)
    assert not refused.may_pass
    assert "gpu0: 8.0 GiB free of 8.0 GiB" in str(refused)


def test_memory_on_its_way_back_is_waited_for() -> None:
    views = [view("gpu0"), view("gpu0-b", "stopping", "b", gib=5)]
    refused = place(views, gib=6, rooms={0: 8})
    assert isinstance(refused, Refused)
    assert refused.may_pass


def test_a_model_shares_a_gpu_when_there_is_room_and_no_other_gpu_is_empty() -> None:
    views = [ready("gpu0", "a", gib=10)]
    placed = place(views, gib=6, rooms={0: 24}, may_share=True)
    assert placed == Placed(instance=InstanceName("gpu0-2"), devices=("GPU-0",), is_new=True)
    more = [*views, ready("gpu0-2", "b", gib=6)]
    third = place(more, gib=6, rooms={0: 24}, may_share=True)
    assert isinstance(third, Placed)
    assert (third.instance, third.is_new) == ("gpu0-3", True)


def test_an_empty_gpu_comes_before_sharing_one() -> None:
    views = [ready("gpu0", "a", gib=2), view("gpu1")]
    placed = place(views, gib=2, rooms={0: 24, 1: 8}, may_share=True)
    assert isinstance(placed, Placed)
    assert placed.instance == "gpu1"


@pytest.mark.parametrize(
    ("gib", "may_share"), [(None, True), (6, False)], ids=["need unknown", "instances configured"]
)
def test_without_knowing_or_wanting_it_nothing_is_shared(
    gib: float | None, may_share: bool
) -> None:
    placed = place([ready("gpu0", "a", gib=10)], gib=gib, rooms={0: 24}, may_share=may_share)
    assert isinstance(placed, Placed)
    assert placed.instance == "gpu0"  # an idle one is switched


def test_a_model_too_large_for_each_gpu_is_spread() -> None:
    placed = place([view("gpu0"), view("gpu1"), view("gpu2")], gib=14, rooms={0: 8, 1: 8, 2: 8})
    assert placed == Placed(instance=InstanceName("gpu0"), devices=("GPU-0", "GPU-1"))


def test_a_spread_has_its_gpus_alone() -> None:
    views = [view("gpu0"), ready("gpu1", "tiny", gib=0.1)]
    assert place(views, gib=14, rooms={0: 8, 1: 8}) == Placed(
        instance=InstanceName("gpu0"),
        devices=("GPU-0", "GPU-1"),
        evicts=(InstanceName("gpu1"),),
    )
    spread = [ready("gpu0", "large", gib=14, devices=("GPU-0", "GPU-1")), view("gpu1")]
    placed = place(spread, gib=0.1, rooms={0: 8, 1: 8})
    assert isinstance(placed, Placed)
    assert placed.instance == "gpu0"


def test_the_settings_may_say_over_how_many_gpus() -> None:
    placed = place([view("gpu0"), view("gpu1")], gib=1, gpus=2, rooms={0: 8, 1: 8})
    assert placed == Placed(instance=InstanceName("gpu0"), devices=("GPU-0", "GPU-1"))


def test_a_spread_takes_the_gpus_that_can_be_emptied() -> None:
    """Though others have fewer models: theirs are pinned."""
    views = [
        ready("gpu0", "p", gib=2, pinned=True),
        ready("gpu1", "q", gib=2, pinned=True),
        ready("gpu2", "r", gib=2),
        ready("gpu2-2", "s", gib=2, is_fixed=True),
        ready("gpu3", "t", gib=2),
        ready("gpu3-2", "u", gib=2, is_fixed=True),
    ]
    placed = place(views, gib=18, rooms=dict.fromkeys(range(4), 10))
    assert isinstance(placed, Placed)
    assert placed.devices == ("GPU-2", "GPU-3")
    assert placed.evicts == ("gpu2-2", "gpu3", "gpu3-2")


def test_a_spread_takes_the_gpus_that_have_room() -> None:
    """Though others are empty: somebody else uses their memory."""
    views = [view("gpu0"), view("gpu1"), ready("gpu2", "r", gib=2), ready("gpu3", "t", gib=2)]
    placed = place(views, gib=18, rooms=dict.fromkeys(range(4), 10), foreign={0: 9, 1: 9})
    assert isinstance(placed, Placed)
    assert placed.devices == ("GPU-2", "GPU-3")


def test_a_spread_waits_rather_than_never_being_possible() -> None:
    views = [
        view("gpu0"),
        ready("gpu1", "p", gib=2, pinned=True),
        ready("gpu2", "r", gib=2, leases=1),
    ]
    refused = place(views, gib=18, rooms=dict.fromkeys(range(3), 10))
    assert isinstance(refused, Refused)
    assert refused.may_pass


def test_a_spread_takes_a_gpu_that_is_emptied_for_it_anyway() -> None:
    views = [
        view("gpu0"),
        ready("gpu1", "a", gib=2),
        ready("gpu2", "large", gib=14, devices=("GPU-2", "GPU-0"), last_used=9.0),
    ]
    placed = place(views, gib=18, rooms=dict.fromkeys(range(3), 10))
    assert isinstance(placed, Placed)
    assert (placed.instance, placed.evicts) == ("gpu0", ("gpu2",))
    assert placed.devices == ("GPU-0", "GPU-2")


def test_a_number_of_gpus_keeps_a_model_from_instances_that_have_another() -> None:
    rooms: dict[int, float] = {0: 8, 1: 8}
    views = [
        ready("gpu0", "r", gib=2, last_used=9.0),
        ready("gpu0-2", "s", gib=2, is_fixed=True),
        ready("gpu1", "t", gib=2, last_used=9.0),
    ]
    placed = place(views, gib=3, gpus=2, rooms=rooms, may_share=True)
    assert isinstance(placed, Placed)
    assert placed.devices == ("GPU-0", "GPU-1")
    one = view("gpu0", is_fixed=True)
    assert str(place([one], gib=3, gpus=2, rooms=rooms)) == "gpu0: runs over 1 GPU"
    both = view("gpu0", is_fixed=True, devices=("GPU-0", "GPU-1"))
    assert str(place([both], gib=3, gpus=1, rooms=rooms)) == "gpu0: runs over 2 GPUs"
    assert isinstance(place([both], gib=3, gpus=2, rooms=rooms), Placed)
    assert isinstance(place([view("cpu0")], gib=3, gpus=2, rooms=rooms), Placed)


def test_more_gpus_than_there_are_is_the_reason() -> None:
    assert str(place([view("gpu0")], gib=3, gpus=2, rooms={0: 8})) == (
        "gpu0: it wants 2 GPUs, there is 1"
    )
    views = [view("gpu0"), view("gpu1", missing="gone", devices=())]
    assert str(place(views, gib=3, gpus=3, rooms={0: 8, 1: 8})) == (
        "gpu0: it wants 3 GPUs, there are 2; gpu1: gone"
    )


def test_a_slice_is_no_part_of_a_spread() -> None:
    rooms = {
        "GPU-0": Room(name="gpu0-mig0", total=8 * GIB, is_slice=True),
        "GPU-1": Room(name="gpu1", total=8 * GIB),
        "GPU-2": Room(name="gpu2", total=8 * GIB),
    }
    wanted = Wanted(model_id=WANTED, need=MemoryNeed(weights=3 * GIB), gpus=2)
    views = [view("gpu0-mig0")]
    refused = place_model(wanted, views, Surroundings(rooms=rooms), now=1000.0)
    assert str(refused) == "gpu0-mig0: it wants 2 GPUs, this is a slice of one"


def test_nobody_leaves_who_need_not() -> None:
    views = [
        view("gpu0-mine", assigned=WANTED),
        ready("gpu0-small", "small", gib=1, last_used=1.0),
        ready("gpu0-big", "big", gib=8, last_used=2.0),
    ]
    placed = place(views, gib=6, rooms={0: 10})
    assert isinstance(placed, Placed)
    assert (placed.instance, placed.evicts) == ("gpu0-mine", ("gpu0-big",))


def test_a_busy_one_stays_if_the_idle_ones_are_enough() -> None:
    views = [
        view("gpu0-mine", assigned=WANTED),
        ready("gpu0-small", "small", gib=1, last_used=1.0),
        ready("gpu0-big", "big", gib=8, leases=1),
    ]
    placed = place(views, gib=1, rooms={0: 9}, waited_s=1000)
    assert isinstance(placed, Placed)
    assert (placed.instance, placed.evicts) == ("gpu0-mine", ("gpu0-small",))


def test_without_a_gpu_the_memory_of_the_machine_counts() -> None:
    assert place([view("cpu0")], gib=9, ram=16) == Placed(instance=InstanceName("cpu0"))
    refused = place([view("cpu0")], gib=20, ram=16)
    assert isinstance(refused, Refused)
    assert "the machine's memory: 16.0 GiB free of 16.0 GiB" in str(refused)


def test_the_reason_of_an_instance_is_why_its_own_gpu_is_too_small() -> None:
    refused = place(
        [view("gpu0"), ready("gpu1", "a", gib=2, pinned=True)], gib=9, rooms={0: 8, 1: 10}
    )
    assert isinstance(refused, Refused)
    assert refused.reasons[InstanceName("gpu0")] == "8.0 GiB free of 8.0 GiB"
