import json

import pytest

from tests.ctl.conftest import Ctl
from tests.ctl.test_agents import node
from tests.fakes.operator_api import OperatorApi


def test_a_node_gets_requests_again(ask: Ctl, gateway: OperatorApi) -> None:
    reply = {"node_id": "gpubox", "drained": False}
    gateway.replies["POST nodes/gpubox/undrain"] = reply
    assert ask("undrain", "gpubox").out == "gpubox gets requests again\n"
    assert json.loads(ask("undrain", "gpubox", "--json").out) == reply


def test_an_instance_is_undrained_at_its_agent(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = {"nodes": [node("gpubox")]}
    reply = {"instance": "gpu0", "drained": False}
    gateway.replies["POST nodes/gpubox/node/instances/gpu0/undrain"] = reply
    assert ask("undrain", "gpubox/gpu0").out == "gpubox/gpu0 gets requests again\n"
    assert json.loads(ask("undrain", "gpubox/gpu0", "--json").out) == reply


@pytest.mark.parametrize("what", ["gpubox/", "/gpu0", "/", ""])
def test_half_a_name_is_a_mistake(ask: Ctl, gateway: OperatorApi, what: str) -> None:
    done = ask("undrain", what)
    assert (done.status, gateway.asked) == (2, [])
