import json
from typing import Any

import pytest

from tests.ctl.conftest import Ctl
from tests.ctl.test_agents import node
from tests.fakes.operator_api import OperatorApi


def site(name: str, *devices: str, reason: str = "", **more: Any) -> dict[str, Any]:
    return {
        "instance": name,
        "devices": list(devices),
        "new": False,
        "evicts": [],
        "busy": [],
        "possible": not reason,
        "reason": reason,
        "may_pass": False,
        "free_mib": None,
        **more,
    }


PLACED = {
    "model_id": "coder",
    "need_mib": 9318,
    "problem": "",
    "outcome": "placed",
    "instance": "gpu1",
    "devices": ["GPU-b"],
    "evicts": ["gpu1-2"],
    "sites": [
        site("gpu1", "GPU-b", evicts=["gpu1-2"], busy=["gpu1-2"], free_mib={"GPU-b": 12000}),
        site("gpu0-2", "GPU-a", new=True, free_mib={"GPU-a": 9500}),
        site("gpu0", "GPU-a", reason="pinned, runs planner"),
    ],
}
REFUSED = {
    "model_id": "big",
    "need_mib": 92262,
    "problem": "",
    "outcome": "refused",
    "reason": "it needs 90.1 GiB; gpu0: gpu0 has 79.2 GiB free",
    "may_pass": False,
    "sites": [site("gpu0", "GPU-a", reason="gpu0 has 79.2 GiB free")],
}
JOINS: dict[str, Any] = {"model_id": "planner", "need_mib": None, "outcome": "joins", "instance": "gpu0",
         "sites": []}  # fmt: skip
BROKEN = JOINS | {"model_id": "torn", "problem": "/models/torn.gguf is truncated"}


@pytest.fixture
def gateway(gateway: OperatorApi) -> OperatorApi:
    box = node("gpubox", "coder", "big", "planner", "torn")
    box["instances"] = [
        {"instance": "gpu0", "state": "ready", "model_id": "planner"},
        {"instance": "gpu1", "state": "ready", "model_id": "writer"},
        {"instance": "gpu1-2", "state": "ready", "model_id": "small"},
        {"instance": "gpu2", "state": "stopped", "model_id": "gone"},
    ]
    gpus = [{"gpu": "gpu0", "uuid": "GPU-a"}, {"gpu": "gpu1", "uuid": "GPU-b"}]
    gateway.replies["GET status"] = {"nodes": [{**box, "gpus": gpus}]}
    plans = {each["model_id"]: each for each in (PLACED, REFUSED, JOINS, BROKEN)}
    for name, plan in plans.items():
        gateway.replies[f"GET nodes/gpubox/node/plan?model={name}"] = {"plans": [plan]}
    gateway.replies["GET nodes/gpubox/node/plan"] = {"plans": [*plans.values()]}
    return gateway


@pytest.mark.usefixtures("gateway")
def test_a_plan_says_where_and_what_has_to_happen_first(ask: Ctl) -> None:
    assert ask("node", "plan", "coder").lines == [
        "coder (needs 9.1 GiB): on gpu1, in place of writer (gpu1), small (gpu1-2, busy)",
        "",
        "    INSTANCE      OVER  WOULD FIND  HAS TO GO                            WHY NOT",
        "->  gpu1          gpu1    11.7 GiB  writer (gpu1), small (gpu1-2, busy)  -",
        "    gpu0-2 (new)  gpu0     9.3 GiB  -                                    -",
        "    gpu0          gpu0           -  -                                    pinned, runs planner",
    ]
    assert json.loads(ask("node", "plan", "coder", "--json").out) == {
        "plans": [json.loads(json.dumps(PLACED))]
    }


@pytest.mark.usefixtures("gateway")
def test_a_refusal_has_its_numbers(ask: Ctl) -> None:
    assert ask("node", "plan", "big").lines[0] == (
        "big (needs 90.1 GiB): nowhere now: it needs 90.1 GiB; gpu0: gpu0 has 79.2 GiB free"
    )
    assert ask("node", "plan", "torn").lines == [
        "torn (what it needs cannot be told): nowhere now: /models/torn.gguf is truncated"
    ]
    assert ask("node", "plan", "planner").lines == [
        "planner (what it needs cannot be told): is on gpu0, or on its way there"
    ]
    assert ask("node", "plan", "nobody").status == 4


@pytest.mark.usefixtures("gateway")
def test_without_a_model_all_are_planned_in_short(ask: Ctl) -> None:
    assert [line.split()[:4] for line in ask("node", "plan", "--node", "gpubox").lines[1:]] == [
        ["coder", "9.1", "GiB", "gpu1"],
        ["big", "90.1", "GiB", "-"],
        ["planner", "-", "gpu0", "-"],
        ["torn", "-", "-", "-"],
    ]


def test_a_node_without_models_says_so(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET nodes/gpubox/node/plan"] = {"plans": []}
    done = ask("node", "plan")
    assert (done.status, done.out) == (0, "")
    assert "no model is configured" in done.err
