import json

from tests.ctl.conftest import Ctl
from tests.ctl.test_status import STATUS
from tests.fakes.operator_api import OperatorApi


def test_models_instances_and_gpus_are_listed_by_node(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = STATUS
    shown = ask("nodes").lines
    assert shown[0].split() == [
        "NODE", "STATE", "HEARD", "MODELS", "RUNNING", "ADDRESS", "REASON",
    ]  # fmt: skip
    words = [line.split() for line in shown]
    assert ["gpubox", "coder-gguf", "coder", "ready", "4", "1", "3", "-"] in words
    assert ["gpubox", "big", "-", "failed", "-", "-", "0", "out", "of", "memory"] in words
    assert ["gpubox", "gpu0", "ready", "coder-gguf", "-"] in words
    assert ["gpubox", "gpu0", "H200", "1000", "MiB", "700", "MiB", "93", "%"] in words


def test_what_is_wrong_with_a_host_is_said(ask: Ctl, gateway: OperatorApi) -> None:
    node = STATUS["nodes"][0] | {"host": {"problems": ["no NVIDIA driver library"]}}
    gateway.replies["GET status"] = STATUS | {"nodes": [node]}
    assert ask("nodes").err == "gpubox: no NVIDIA driver library\n"


def test_a_drained_node_is_called_so(ask: Ctl, gateway: OperatorApi) -> None:
    node = STATUS["nodes"][0] | {"drained": True}
    gateway.replies["GET status"] = STATUS | {"nodes": [node]}
    assert ask("nodes").lines[1].split()[:2] == ["gpubox", "drained"]


def test_no_nodes_is_said_beside_the_output(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = STATUS | {"nodes": []}
    done = ask("nodes")
    assert (done.status, done.out, done.err) == (0, "", "no node has registered\n")
    assert json.loads(ask("nodes", "--json").out) == {"nodes": []}
