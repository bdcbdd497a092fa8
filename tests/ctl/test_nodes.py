import json

from tests.ctl.conftest import Ctl
from tests.ctl.test_status import STATUS
from tests.fakes.operator_api import OperatorApi


def test_models_instances_and_gpus_are_listed_by_node(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = STATUS
    shown = ask("nodes").lines
    assert shown[0].split() == [
        "NODE", "STATE", "HEARD", "MODELS", "RUNNING", "ADDRESS", "VERSION", "REASON",
    ]  # fmt: skip
    words = [line.split() for line in shown]
    assert ["gpubox", "coder-gguf", "coder", "ready", "4", "1", "3", "-"] in words
    assert ["gpubox", "big", "-", "failed", "-", "-", "0", "out", "of", "memory"] in words
    assert ["gpubox", "gpu0", "ready", "coder-gguf", "-", "-", "-", "-", "-"] in words
    gpu = ["gpubox", "gpu0", "H200", "1000", "MiB", "700", "MiB", "93", "%", "-", "-", "-"]
    assert gpu in words


def test_what_an_instance_runs_is_told_exactly(ask: Ctl, gateway: OperatorApi) -> None:
    instance = {
        "instance": "gpu1",
        "state": "stopped",
        "drained": True,
        "pinned": True,
        "model_id": "coder-gguf",
        "args_hash": "0123456789abcdef",
        "build": "b6000",
        "version": "0.1.0",
        "reason": "drained by an operator",
    }
    node = STATUS["nodes"][0] | {"instances": [instance]}
    gateway.replies["GET status"] = STATUS | {"nodes": [node]}
    (line,) = (line for line in ask("nodes").lines if "gpu1" in line)
    assert line.split() == [
        *("gpubox", "gpu1", "stopped,", "drained", "coder-gguf", "yes", "01234567", "b6000"),
        *("0.1.0", "drained", "by", "an", "operator"),
    ]


def test_hosts_are_listed_with_their_memory(ask: Ctl, gateway: OperatorApi) -> None:
    host = {
        "hostname": "gpubox.example",
        "cpus": 16,
        "memory_total_mib": 131072,
        "memory_available_mib": 98304,
        "nvidia_driver": "575.57",
    }
    node = STATUS["nodes"][0] | {"host": host}
    gateway.replies["GET status"] = STATUS | {"nodes": [node]}
    assert ask("nodes").lines[-1].split() == [
        *("gpubox", "gpubox.example", "16", "128.0", "GiB", "96.0", "GiB", "575.57"),
    ]


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
