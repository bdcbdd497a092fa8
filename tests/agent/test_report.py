"""What gateways and people are told."""

from typing import Any

import pytest

from rolemesh.agent.failures import Failure
from rolemesh.agent.fleet_snapshot import FleetSnapshot, InstanceSnapshot
from rolemesh.agent.host import Host
from rolemesh.agent.instance import InstanceState
from rolemesh.agent.inventory import Inventory
from rolemesh.agent.model_check import ModelProblems
from rolemesh.agent.observation import HostObservation
from rolemesh.agent.placement_view import PlacementView, Refused
from rolemesh.agent.report import (
    NodeView,
    build_report,
    inventory_json,
    report_models,
    status_line,
    what_is_missing,
)
from rolemesh.config.settings import NodeSettings
from rolemesh.names import InstanceName, ModelId
from rolemesh.wire import InstanceReport, ModelReport, ModelState, NodeReport
from tests.agent.builders import inventory, model, node_settings

A = ModelId("a")
HOST = Host(hostname="box", kernel="6.1", cpus=2, memory_total_mib=None, memory_available_mib=None)
SETTINGS = node_settings(model("a", parallel=4))
FAILURE = Failure(reason="out of memory", serial=1, backoff_s=10.0, retry_at=50.0)


def snapshot(
    name: str = "gpu0", state: str = "stopped", runs: str | None = None, **others: Any
) -> InstanceSnapshot:
    seen = {key: others.pop(key) for key in ("missing", "next_model_id", "leases") if key in others}
    view = PlacementView(
        name=InstanceName(name),
        state=InstanceState(state),
        model_id=None if runs is None else ModelId(runs),
        **seen,
    )
    return InstanceSnapshot(view=view, **others)


def node_view(
    *instances: InstanceSnapshot,
    settings: NodeSettings = SETTINGS,
    failed: bool = False,
    now: float = 0.0,
    problems: ModelProblems | None = None,
    found: Inventory | None = None,
    state_problem: str = "",
    refused: Refused | None = None,
) -> NodeView:
    return NodeView(
        settings=settings,
        fleet=FleetSnapshot(
            instances=instances,
            failures={A: FAILURE} if failed else {},
            refused={} if refused is None else {A: refused},
        ),
        host=HostObservation(
            inventory=found or inventory(),
            host=HOST,
            model_problems=problems or ModelProblems(models={}),
            state_problem=state_problem,
        ),
        now=now,
    )


def report_of(view: NodeView) -> ModelReport:
    (report,) = report_models(view)
    return report


@pytest.mark.parametrize(
    ("instances", "state", "slots", "free"),
    [
        ((snapshot(),), ModelState.COLD, 4, 4),
        ((snapshot(state="ready", runs="a", slots=4, slots_held=1),), ModelState.READY, 4, 3),
        (
            (
                snapshot(state="ready", runs="a", slots=4, slots_held=4),
                snapshot("gpu1", "ready", "a", slots=4, slots_held=1),
            ),
            ModelState.READY,
            8,
            3,
        ),
        ((snapshot(state="loading", runs="a"),), ModelState.LOADING, 4, 4),
        ((snapshot(state="starting", runs="a"),), ModelState.LOADING, 4, 4),
        ((snapshot(state="draining", runs="b", next_model_id=A),), ModelState.LOADING, 4, 4),
        ((snapshot(state="draining", runs="a"),), ModelState.COLD, 4, 4),
        ((snapshot(state="ready", runs="b"),), ModelState.COLD, 4, 4),
    ],
)
def test_a_usable_model_has_a_state_and_slots(
    instances: tuple[InstanceSnapshot, ...], state: ModelState, slots: int, free: int
) -> None:
    report = report_of(node_view(*instances))
    assert (report.state, report.usable, report.reason) == (state, True, "")
    assert (report.slots, report.slots_free) == (slots, free)


def test_ready_instances_are_told_apart() -> None:
    report = report_of(
        node_view(
            snapshot(state="ready", runs="a", slots=4, slots_held=1),
            snapshot("gpu1", "ready", "a", slots=2, slots_held=2),
            snapshot("gpu2", "loading", "a"),
            snapshot("gpu3", "ready", "b"),
        )
    )
    assert report.instances == (
        InstanceReport(name=InstanceName("gpu0"), slots=4, slots_free=3),
        InstanceReport(name=InstanceName("gpu1"), slots=2, slots_free=0),
    )
    assert ModelReport.from_json(report.to_json()) == report


@pytest.mark.parametrize(
    ("status_text", "progress"),
    [("loading a: 40% (3 s)", 0.4), ("loading", None), ("240 %", 1.0)],
)
def test_progress_of_a_load_is_what_its_unit_says(status_text: str, progress: float | None) -> None:
    view = node_view(snapshot(state="loading", runs="a", status_text=status_text))
    assert report_of(view).progress == progress


def test_a_model_without_an_instance_that_can_take_it_is_not_usable() -> None:
    refused = Refused(reasons={InstanceName("gpu0"): "gpu0 is not there"}, may_pass=False)
    report = report_of(node_view(snapshot(missing="gpu0 is not there"), refused=refused))
    assert not report.usable
    assert report.reason == "no instance can take it: gpu0: gpu0 is not there"


def test_a_model_whose_turn_may_come_is_usable() -> None:
    refused = Refused(reasons={InstanceName("gpu0"): "busy with b"}, may_pass=True)
    busy = snapshot(state="ready", runs="b", leases=1)
    report = report_of(node_view(busy, refused=refused))
    assert (report.usable, report.has_room) == (True, False)
    assert ModelReport.from_json(report.to_json()) == report
    assert report_of(node_view(snapshot())).has_room


def test_a_failed_model_is_unusable_until_it_may_be_tried_again() -> None:
    failed = snapshot(state="failed", runs="a")
    now = report_of(node_view(failed, failed=True, now=49.0))
    assert (now.state, now.usable) == (ModelState.FAILED, False)
    assert now.reason == "failed to load: out of memory"
    assert report_of(node_view(failed, failed=True, now=51.0)).usable


def test_what_keeps_a_model_from_loading_is_its_reason() -> None:
    problems = ModelProblems(node=("no llama-server",), models={A: "no file"})
    report = report_of(node_view(snapshot(), problems=problems))
    assert report.reason == "no llama-server; no file"
    ready = node_view(snapshot(state="ready", runs="a"), problems=problems)
    assert report_of(ready).usable


def test_a_report_can_be_read_by_a_gateway() -> None:
    view = node_view(snapshot(state="ready", runs="a"), found=inventory(0))
    report = build_report(view, base_url="http://10.0.0.7:8100", boot_id="b1", token="t")
    read = NodeReport.from_json(report.to_json())
    assert read == report
    assert (read.api_key, read.boot_id, read.node_id) == ("t", "b1", "box")
    assert read.inventory["gpus"][0]["gpu"] == "gpu0"


def test_the_token_is_not_in_heartbeats() -> None:
    report = build_report(node_view(), base_url="http://x", boot_id="b1", token="t0ken")
    assert "t0ken" not in str(report.heartbeat_json())


def test_the_inventory_says_how_every_instance_stands() -> None:
    tree = inventory_json(node_view(snapshot(state="failed", runs="a", reason="out of memory")))
    (instance,) = tree["instances"]
    assert (instance["instance"], instance["state"]) == ("gpu0", "failed")
    assert instance["reason"] == "out of memory"
    assert tree["host"]["hostname"] == "box"


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (node_view(snapshot()), ()),
        (node_view(snapshot(), settings=node_settings()), ("no model is configured (models:)",)),
        (
            node_view(snapshot(), problems=ModelProblems(node=("no binary",), models={A: "gone"})),
            ("no binary", "gone"),
        ),
        (
            node_view(found=inventory(problem="no driver")),
            ("no instance: no GPU, and policy.allow_cpu is false", "no driver"),
        ),
        (node_view(snapshot("cpu0"), found=inventory(problem="no driver")), ()),
        (
            node_view(snapshot(missing="gpu0 is not there; no driver")),
            ("gpu0: gpu0 is not there; no driver",),
        ),
        (node_view(snapshot(), failed=True), ("a failed to load: out of memory",)),
        (
            node_view(snapshot(), failed=True, problems=ModelProblems(models={A: "gone"})),
            ("gone",),
        ),
        (node_view(snapshot(), state_problem="gpus.json not saved"), ("gpus.json not saved",)),
    ],
)
def test_what_is_missing_is_said(view: NodeView, expected: tuple[str, ...]) -> None:
    assert what_is_missing(view) == expected


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (
            node_view(snapshot(state="ready", runs="a"), snapshot("cpu0")),
            "1 model, 2 instances (gpu0 ready a, cpu0 cold); gateways 1/1",
        ),
        (
            node_view(snapshot(state="stopping", runs="b", next_model_id=A)),
            "1 model, 1 instance (gpu0 stopping a); gateways 1/1",
        ),
        (
            node_view(snapshot(missing="gpu0 is not there")),
            "1 model, 1 instance (gpu0 unavailable); gateways 1/1; "
            "missing: gpu0: gpu0 is not there",
        ),
        (
            node_view(settings=node_settings()),
            "0 models, 0 instances; gateways 1/1; missing: no model is configured (models:) | "
            "no instance: no GPU, and policy.allow_cpu is false",
        ),
    ],
)
def test_the_status_is_one_line(view: NodeView, expected: str) -> None:
    assert status_line(view, "1/1") == expected


def test_a_reason_of_several_lines_does_not_break_the_status() -> None:
    view = node_view(snapshot(missing="one\ntwo"))
    assert "\n" not in status_line(view, "0/0")
