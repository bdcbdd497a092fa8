import json

from tests.ctl.conftest import Ctl
from tests.ctl.test_agents import node
from tests.fakes.operator_api import OperatorApi

GPU = {
    "gpu": "gpu0",
    "uuid": "GPU-a",
    "name": "H200",
    "memory_total_mib": 143771,
    "memory_used_mib": 700,
    "utilisation": 93,
    "temperature_c": 61,
    "power_w": 312.4,
    "processes": [{"pid": 4711, "memory_mib": 640}, {"pid": 4712, "memory_mib": None}],
    "health": ["Xid 79: the card has fallen off the bus"],
}
BOX = {
    **node("gpubox"),
    "gpus": [GPU],
    "instances": [
        {"instance": "gpu0", "model_id": "coder", "devices": ["GPU-a"]},
        {"instance": "gpu0-2", "model_id": None, "devices": ["GPU-a"]},
    ],
    "host": {"problems": ["the driver is too old"]},
}


def test_gpus_are_shown_with_what_is_on_them(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = {"nodes": [BOX]}
    gateway.replies["GET nodes/gpubox/node"] = BOX
    done = ask("node", "gpus")
    assert done.lines == [
        "GPU   NAME     MEMORY     USED  BUSY  TEMP  POWER  INSTANCES    PROCESSES             UUID",
        "gpu0  H200  140.4 GiB  700 MiB  93 %  61 C  312 W  gpu0: coder  4711 (640 MiB), 4712  GPU-a",
    ]
    assert done.err == "gpu0: Xid 79: the card has fallen off the bus\nthe driver is too old\n"
    assert json.loads(ask("node", "gpus", "--json").out) == {"node_id": "gpubox", "gpus": [GPU]}


def test_a_node_without_gpus_says_so(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = {"nodes": [node("gpubox")]}
    gateway.replies["GET nodes/gpubox/node"] = {**node("gpubox"), "gpus": []}
    done = ask("node", "gpus")
    assert (done.status, done.out, done.err) == (0, "", "gpubox has no GPU\n")


def test_gpus_are_numbered_anew(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = {"nodes": [BOX]}
    path = "POST nodes/gpubox/node/gpus/renumber"
    reply = {
        "renumbered": {
            "GPU-b": {"was": "gpu1", "is": "gpu0"},
            "GPU-a": {"was": "gpu0", "is": None},
        }
    }
    gateway.replies[path] = [reply, {"renumbered": {}}, reply]
    assert ask("node", "gpus", "--renumber").lines == [
        "GPU-a: gpu0 -> forgotten",
        "GPU-b: gpu1 -> gpu0",
    ]
    assert ask("node", "gpus", "--renumber").lines == ["every GPU keeps its number"]
    assert json.loads(ask("node", "gpus", "--renumber", "--json").out) == reply
    gateway.refuse(path, 503, "GPUs keep their numbers while instances run on them: gpu0")
    assert ask("node", "gpus", "--renumber").status == 1
