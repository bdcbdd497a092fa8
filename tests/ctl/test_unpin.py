import json

from tests.ctl.conftest import Ctl
from tests.ctl.test_agents import node
from tests.fakes.operator_api import OperatorApi


def test_an_instance_is_unpinned(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = {"nodes": [node("gpubox")]}
    reply = {"instance": "gpu0", "pinned": False}
    gateway.replies["POST nodes/gpubox/node/instances/gpu0/unpin"] = reply
    done = ask("unpin", "gpu0")
    assert (done.status, done.out) == (0, "gpu0 of gpubox is not pinned any more\n")
    assert json.loads(ask("unpin", "gpu0", "--json").out) == reply
    assert ask("unpin", "gpu1").status == 4
