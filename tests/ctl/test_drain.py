import json

import pytest

from tests.ctl.conftest import Ctl
from tests.ctl.test_agents import node
from tests.ctl.test_ps import request
from tests.fakes.operator_api import OperatorApi

DRAINED = {"node_id": "gpubox", "drained": True}
HERE, ELSEWHERE = request("req-a"), request("req-b", node="other")


def test_a_drained_node_finishes_what_runs(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["POST nodes/gpubox/drain"] = DRAINED
    gateway.replies["GET requests"] = {"requests": [HERE, ELSEWHERE]}
    done = ask("drain", "gpubox")
    assert (done.status, done.out) == (0, "gpubox gets no new requests; 1 still run there\n")
    assert json.loads(ask("drain", "gpubox", "--json").out) == DRAINED


def test_waiting_ends_when_nothing_runs_there(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["POST nodes/gpubox/drain"] = DRAINED
    gateway.replies["GET requests"] = [{"requests": [HERE]}, {"requests": [ELSEWHERE]}]
    done = ask("drain", "gpubox", "--wait")
    assert (done.status, done.out) == (0, "gpubox is drained: no request runs there\n")
    assert gateway.asked == ["POST nodes/gpubox/drain", "GET requests", "GET requests"]


def test_a_node_that_is_not_there_is_status_4(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.refuse("POST nodes/nobody/drain", 404, "no node nobody is known")
    done = ask("drain", "nobody")
    assert (done.status, done.err) == (4, "rolemeshctl: no node nobody is known\n")


def test_an_instance_is_drained_at_its_agent(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = {"nodes": [node("gpubox"), node("other")]}
    drained = {"instance": "gpu0", "drained": True}
    gateway.replies["POST nodes/gpubox/node/instances/gpu0/drain"] = drained
    busy = node("gpubox") | {"instances": [{"instance": "gpu0", "requests": 2}]}
    gateway.replies["GET nodes/gpubox/node"] = [busy, busy, node("gpubox")]
    done = ask("drain", "gpubox/gpu0")
    assert (done.status, done.out) == (0, "gpubox/gpu0 gets no new requests; 2 still run there\n")
    assert ask("drain", "gpubox/gpu0", "--wait").lines == [
        "gpubox/gpu0 is drained: no request runs there"
    ]
    assert json.loads(ask("drain", "gpubox/gpu0", "--json").out) == drained
    assert ask("drain", "gpubox/gpu7").status == 4


@pytest.mark.parametrize("what", ["gpubox/", "/gpu0", "/", ""])
def test_half_a_name_is_a_mistake(ask: Ctl, gateway: OperatorApi, what: str) -> None:
    done = ask("drain", what)
    assert (done.status, gateway.asked) == (2, [])
