import json
from typing import Any

from tests.ctl.conftest import Ctl, Host
from tests.ctl.test_agents import node
from tests.fakes.operator_api import OperatorApi

LOADING: dict[str, Any] = {
    "model_id": "coder",
    "roles": ["coder", "writer"],
    "state": "loading",
    "progress": 0.4,
    "usable": True,
    "reason": "",
    "context_size": 8192,
}
DETAILS = {"file_mib": 4500, "quantisation": "Q4_K_M", "need_mib": 6042}
TOO_LARGE = {
    "model_id": "big",
    "roles": [],
    "state": "cold",
    "usable": False,
    "reason": "it needs 90.1 GiB; gpu0: gpu0 has 79.2 GiB free",
}
BOX = {
    **node("gpubox"),
    "state": "live",
    "reason": "",
    "models": [LOADING, TOO_LARGE],
    "instances": [
        {"instance": "gpu0", "state": "loading", "model_id": "coder"},
        {"instance": "gpu1", "state": "stopping", "model_id": "old", "next_model_id": "coder"},
        {"instance": "gpu2", "state": "stopped", "model_id": "coder"},
    ],
}
LOST = {**node("old", "planner"), "state": "lost", "reason": "silent for 47 s"}


def test_every_model_of_every_node_is_listed(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = {"nodes": [BOX, LOST]}
    models = [{**LOADING, **DETAILS}, TOO_LARGE]
    gateway.replies["GET nodes/gpubox/node"] = {"node_id": "gpubox", "models": models}
    assert ask("models").lines == [
        "NODE    MODEL    ROLES         STATE            SIZE  QUANT   CONTEXT    NEEDS  ON         REASON",
        "gpubox  coder    coder,writer  loading 40 %  4.4 GiB  Q4_K_M     8192  5.9 GiB  gpu0,gpu1  -",
        "gpubox  big      -             cold                -  -             -        -  -          "
        "it needs 90.1 GiB; gpu0: gpu0 has 79.2 GiB free",
        "old     planner  -             unknown             -  -             -        -  -          "
        "silent for 47 s",
    ]  # fmt: skip
    assert "GET nodes/old/node" not in gateway.asked
    told = json.loads(ask("models", "--json").out)["models"]
    assert told[0] == {**LOADING, **DETAILS, "node_id": "gpubox", "on": ["gpu0", "gpu1"]}
    assert [model["usable"] for model in told] == [True, False, False]


def test_of_a_node_that_does_not_answer_the_gateway_tells(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = {"nodes": [BOX]}
    gateway.refuse("GET nodes/gpubox/node", 502, "no connection")
    assert [line.split()[1] for line in ask("models").lines[1:]] == ["coder", "big"]
    assert ask("models", "--node", "gpubox").lines == ask("models").lines
    assert ask("models", "--node", "nobody").status == 4


def test_without_a_gateway_those_of_this_host_are_listed(ctl: Ctl, host: Host) -> None:
    assert ctl("models").status == 3
    host.agent("node", BOX)
    done = ctl("models")
    assert (done.status, done.lines[1].split()[:2]) == (0, ["gpubox", "coder"])
    assert done.err.startswith("only this host's: no gateway runs on this host")


def test_no_model_is_said_beside_the_output(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = {"nodes": []}
    done = ask("models")
    assert (done.status, done.out) == (0, "")
    assert done.err.startswith("no model is configured")


def test_a_key_that_was_named_and_is_not_there_is_no_reason_to_look_elsewhere(
    ctl: Ctl, host: Host
) -> None:
    host.agent("node", BOX)
    assert ctl("models", "--key-file", "/nonexistent").status == 3
