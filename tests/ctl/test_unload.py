import json

from tests.ctl.conftest import Ctl
from tests.ctl.test_agents import node
from tests.fakes.operator_api import OperatorApi


def test_a_model_or_an_instance_is_unloaded(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = {"nodes": [node("gpubox", "coder")]}
    path = "POST nodes/gpubox/node"
    gateway.replies[f"{path}/models/coder/unload"] = {"instances": ["gpu0", "gpu1"]}
    gateway.replies[f"{path}/instances/gpu0/unload"] = {"instances": []}
    done = ask("unload", "coder")
    assert (done.status, done.out) == (
        0,
        "gpubox: gpu0, gpu1 is being emptied; running requests finish first\n",
    )
    assert ask("unload", "gpu0").out == "nothing of gpu0 is loaded on gpubox\n"
    assert json.loads(ask("unload", "gpu0", "--json").out) == {"instances": []}
    missing = ask("unload", "gpu1")
    assert missing.status == 4
    assert "there is no model or instance gpu1 on gpubox" in missing.err


def test_an_instance_of_several_nodes_wants_a_node(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = {"nodes": [node("one"), node("two")]}
    done = ask("unload", "gpu0")
    assert done.status == 2
    assert "several nodes have the instance gpu0: one, two" in done.err
    gateway.replies["POST nodes/two/node/instances/gpu0/unload"] = {"instances": ["gpu0"]}
    assert ask("unload", "gpu0", "--node", "two").status == 0
