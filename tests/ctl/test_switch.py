import json

from tests.ctl.conftest import Ctl
from tests.ctl.test_agents import node
from tests.fakes.operator_api import Lines, OperatorApi

PATH = "POST nodes/gpubox/node/instances/gpu0/switch"
READY = {"model_id": "coder", "state": "ready", "instances": ["gpu0"]}


def test_an_instance_is_switched(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = {"nodes": [node("gpubox", "coder")]}
    leaving = {"state": "draining", "instance": "gpu0", "reason": "planner leaves first"}
    gateway.replies[f"{PATH}?wait_s=3600"] = Lines([leaving, READY])
    done = ask("switch", "gpu0", "coder")
    assert (done.status, done.err) == (0, "coder on gpu0: draining: planner leaves first\n")
    assert done.out.startswith("coder is ready on gpubox, gpu0 (")
    assert gateway.bodies[-1] == {"model_id": "coder"}
    gateway.refuse(f"{PATH}?wait_s=0", 503, "still loading", reason="loading")
    assert json.loads(ask("switch", "gpu0", "coder", "--no-wait", "--json").out) == {
        "model_id": "coder",
        "state": "loading",
    }
    assert ask("switch", "gpu7", "coder").status == 4
