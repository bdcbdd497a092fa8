import json

from tests.ctl.conftest import Ctl
from tests.ctl.test_agents import node
from tests.fakes.operator_api import OperatorApi


def test_an_instance_is_pinned(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = {"nodes": [node("gpubox")]}
    reply = {"instance": "gpu0", "pinned": True}
    gateway.replies["POST nodes/gpubox/node/instances/gpu0/pin"] = reply
    done = ask("pin", "gpu0")
    assert (done.status, done.out) == (0, "gpu0 of gpubox is pinned\n")
    assert json.loads(ask("pin", "gpu0", "--json").out) == reply
    assert ask("pin", "gpu1").status == 4
