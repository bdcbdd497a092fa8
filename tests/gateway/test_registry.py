import json
import logging
from typing import Any

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.gateway.registry import FORGET_AFTER_S, NodeState, Registry, UnknownNode
from rolemesh.jsonread import JsonError
from rolemesh.names import InstanceName, NodeId
from rolemesh.runtime.journal import EVENT
from rolemesh.runtime.operator_events import OperatorEvent
from rolemesh.wire import InstanceReport, ModelState
from tests.gateway.builders import model, report

BOX = NodeId("box")
ADDRESS = UpstreamAddress.parse_url("http://10.0.0.7:8100")


class World:
    """A registry, its clock, and how often it said that something changed."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.changes = 0
        self.silent: list[UpstreamAddress] = []
        self.registry = Registry(
            stale_after_s=30,
            on_change=self.changed,
            on_silent=self.silent.append,
            clock=lambda: self.now,
        )

    def changed(self) -> None:
        self.changes += 1

    def register(self, node_id: str = "box", **fields: Any) -> None:
        self.registry.register(report(node_id, boot_id="b1", **fields), ADDRESS)

    def beat(self, **fields: Any) -> None:
        self.registry.heartbeat(BOX, {"boot_id": "b1", **fields})

    def state(self) -> NodeState:
        return self.registry.nodes[BOX].state

    @property
    def unusable(self) -> str:
        (view,) = self.registry.views()
        return view.unusable


@pytest.fixture
def world() -> World:
    return World()


def test_a_registered_node_is_in_routing(world: World) -> None:
    world.register(api_key="k")
    (view,) = world.registry.views()
    assert (view.node_id, view.address, view.api_key) == ("box", ADDRESS, "k")
    assert view.unusable == ""
    assert world.changes == 1


def test_registering_again_changes_nothing(world: World) -> None:
    world.register()
    world.register()
    assert world.changes == 1


def test_nodes_have_a_stable_order(world: World) -> None:
    for name in ("c", "a", "b"):
        world.register(name)
    assert [view.node_id for view in world.registry.views()] == ["a", "b", "c"]


def test_a_heartbeat_keeps_a_node_and_says_what_changed(world: World) -> None:
    world.register(inventory={"gpus": [1], "host": {"name": "x"}})
    world.now += 29
    world.beat(models=[{"model_id": "m", "roles": ["coder"], "state": "loading"}], gpus=[2])
    world.now += 29
    world.registry.expire()
    node = world.registry.nodes[BOX]
    assert node.state is NodeState.LIVE
    assert node.report.models[0].state is ModelState.LOADING
    assert node.report.inventory == {"gpus": [2], "host": {"name": "x"}}
    assert world.changes == 2


def test_free_slots_come_and_go_without_a_new_table(world: World) -> None:
    world.register()
    for free in (0, 3):
        world.beat(models=[model("m", slots_free=free).to_json()])
        assert world.registry.nodes[BOX].report.models[0].slots_free == free
    world.beat()
    assert world.changes == 1
    for free in (0, 3):
        gpu0 = InstanceReport(name=InstanceName("gpu0"), slots=4, slots_free=free)
        world.beat(models=[model("m", instances=(gpu0,)).to_json()])
    assert world.changes == 2  # the instance itself is new, its free slots are not


@pytest.mark.parametrize(
    ("node_id", "beat"),
    [("other", {"boot_id": "b1"}), ("box", {"boot_id": "b2"}), ("box", {})],
)
def test_who_is_not_registered_in_this_life_has_to_register(
    world: World, node_id: str, beat: dict[str, Any]
) -> None:
    world.register()
    with pytest.raises(UnknownNode):
        world.registry.heartbeat(NodeId(node_id), beat)


@pytest.mark.parametrize(
    "beat", [{"boot_id": 1}, {"boot_id": "b1", "models": {}}, {"boot_id": "b1", "models": [1]}]
)
def test_a_bad_heartbeat_changes_nothing(world: World, beat: dict[str, Any]) -> None:
    world.register()
    before = world.registry.nodes[BOX]
    with pytest.raises(JsonError):
        world.registry.heartbeat(BOX, beat)
    assert world.registry.nodes[BOX] is before


def test_a_silent_node_is_out_of_routing_until_it_speaks(world: World) -> None:
    world.register()
    world.now += 29.5
    assert world.registry.expire() == pytest.approx(0.5)
    assert world.state() is NodeState.LIVE
    world.now += 1
    assert world.registry.expire() == 30
    assert world.state() is NodeState.LATE
    world.now += 16.5
    assert world.unusable == "stale: not heard for 47 s"
    world.beat()
    assert world.unusable == ""
    assert world.changes == 3


def test_the_next_look_is_due_when_the_next_node_may_be_late(world: World) -> None:
    assert world.registry.expire() == 30
    world.register("a")
    world.now += 10
    world.register("b")
    assert world.registry.expire() == 20


def test_a_node_that_does_not_answer_is_lost_until_it_does(world: World) -> None:
    world.register()
    world.registry.did_not_answer(BOX)
    assert (world.state(), world.unusable) == (NodeState.LOST, "did not answer")
    world.registry.did_not_answer(BOX)
    assert world.changes == 2
    world.registry.answered(BOX)
    assert world.state() is NodeState.LIVE
    world.registry.did_not_answer(BOX)
    world.beat()
    assert world.state() is NodeState.LIVE
    assert world.changes == 5


def test_probes_of_unknown_nodes_are_of_no_interest(world: World) -> None:
    world.registry.answered(BOX)
    world.registry.did_not_answer(BOX)
    assert world.registry.expire() == 30
    assert (world.changes, world.registry.nodes) == (0, {})


def test_a_removed_node_is_gone(world: World) -> None:
    world.register()
    assert world.registry.remove(BOX)
    assert not world.registry.remove(BOX)
    assert (world.changes, world.registry.views()) == (2, ())


def test_a_restored_node_is_out_of_routing_until_it_is_heard_of(world: World) -> None:
    world.register(api_key="k", inventory={"gpus": [1]})
    saved = json.loads(json.dumps(world.registry.saved()))
    again = World()
    again.registry.restore(saved)
    assert again.changes == 1
    node = again.registry.nodes[BOX]
    assert node.report == world.registry.nodes[BOX].report
    assert node.address == ADDRESS
    assert "before this gateway started" in again.unusable
    with pytest.raises(UnknownNode):
        again.beat()
    again.registry.did_not_answer(BOX)
    assert again.state() is NodeState.RESTORED
    again.registry.answered(BOX)
    assert again.unusable == ""
    with pytest.raises(UnknownNode):
        again.beat()  # it answers, but what is known of it may be out of date
    again.register()
    again.beat()


def test_a_drained_node_is_out_of_routing_until_that_is_taken_back(world: World) -> None:
    world.register()
    world.registry.drain(BOX)
    assert world.unusable == "drained by an operator"
    world.beat()
    world.register()
    assert world.unusable == "drained by an operator"
    world.registry.undrain(BOX)
    assert world.unusable == ""
    assert world.changes == 3


def test_a_drain_outlives_the_node_and_the_gateway(world: World) -> None:
    world.register()
    world.registry.drain(BOX)
    world.registry.remove(BOX)
    again = World()
    again.registry.restore(json.loads(json.dumps(world.registry.saved())))
    again.register()
    assert again.unusable == "drained by an operator"
    once_more = World()
    once_more.registry.restore(json.loads(json.dumps(again.registry.saved())))
    assert "before this gateway started" in once_more.unusable
    once_more.registry.answered(BOX)
    assert once_more.unusable == "drained by an operator"


def test_a_drain_is_taken_back_from_a_node_that_has_left(world: World) -> None:
    world.register()
    world.registry.drain(BOX)
    world.registry.remove(BOX)
    world.registry.undrain(BOX)
    assert world.registry.saved()["drained"] == []
    with pytest.raises(UnknownNode):
        world.registry.undrain(BOX)


def test_only_a_known_node_can_be_drained(world: World) -> None:
    with pytest.raises(UnknownNode):
        world.registry.drain(BOX)


def test_a_node_that_goes_silent_is_given_up_once(world: World) -> None:
    world.register()
    world.now += 31
    world.registry.expire()
    world.registry.expire()
    assert world.silent == [ADDRESS]


def test_a_node_silent_for_a_day_is_forgotten(world: World) -> None:
    world.register()
    world.now += 31
    world.registry.expire()
    world.now += FORGET_AFTER_S
    world.registry.expire()
    assert BOX not in world.registry.nodes


@pytest.mark.parametrize(
    "tree",
    [
        None,
        [],
        {},
        {"nodes": {}},
        {"nodes": [{"node_id": "a", "base_url": "http://a", "models": []}, {"node_id": "b"}]},
        {"nodes": [{"node_id": "a", "base_url": "ftp://a", "models": []}]},
    ],
)
def test_a_saved_state_that_is_none_restores_nothing(world: World, tree: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        world.registry.restore(tree)
    assert world.registry.nodes == {}


def test_a_node_that_goes_and_comes_back_is_an_event_each_time(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.register()
    world.now += 31
    world.registry.expire()
    world.beat()
    world.registry.did_not_answer(BOX)
    world.registry.did_not_answer(BOX)
    world.registry.answered(BOX)
    world.register()
    events = [(getattr(each, EVENT), each.getMessage()) for each in caplog.records]
    assert events == [
        (OperatorEvent.NODE_LOST, "node box is out of routing: stale: not heard for 31 s"),
        (OperatorEvent.NODE_BACK, "node box is back"),
        (OperatorEvent.NODE_LOST, "node box is out of routing: did not answer"),
        (OperatorEvent.NODE_BACK, "node box is back"),
    ]
