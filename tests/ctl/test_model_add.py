import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import load_node
from rolemesh.config.settings import NodeSettings
from rolemesh.names import ModelId
from tests.ctl.conftest import Ctl, Done
from tests.fakes.operator_api import OperatorApi, operator_api
from tests.lab.models import TinyModel, make_model

GPUS = [
    {"gpu": "gpu0", "memory_total_mib": 1024, "memory_used_mib": 24},
    {"gpu": "gpu1", "memory_total_mib": 1024, "memory_used_mib": 0},
]
USABLE = {"model_id": "tiny", "usable": True, "state": "cold", "reason": "", "file_mib": 0}
PLAN = {"need_mib": 640, "instance": "gpu0", "outcome": "placed"}


@pytest.fixture(scope="module")
def weights() -> Path:
    return make_model(TinyModel(name="tiny"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "node.d"
    folder.mkdir()
    (folder / "10-a.yaml").write_text("node_id: box\n")
    return folder


@pytest.fixture
def agent(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OperatorApi]:
    """Return the agent of this user, which has two GPUs and finds the model `tiny` usable."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    socket = short_path / "rolemesh" / "node" / "control.sock"
    socket.parent.mkdir(parents=True)
    with operator_api(socket) as api:
        api.replies["GET /v1/node"] = {"node_id": "box", "models": [USABLE], "gpus": GPUS}
        api.replies["GET /v1/node/plan?model=tiny"] = {"plans": [PLAN]}
        yield api


@pytest.fixture
def add(ctl: Ctl, folder: Path, weights: Path) -> Ctl:
    def run(*words: object) -> Done:
        named = () if "--id" in words else ("--id", "tiny")
        return ctl("model", "add", weights, "--directory", folder, *named, *words)

    return run


def settings(folder: Path) -> NodeSettings:
    return load_node(ConfigSource(program="node", config_dir=folder), {}).settings


def untouched(folder: Path) -> bool:
    return [each.name for each in folder.iterdir()] == ["10-a.yaml"]


def test_a_model_is_added_and_its_fit_is_told(
    add: Ctl, folder: Path, agent: OperatorApi, weights: Path
) -> None:
    done = add("--role", "coder", "--role", "critic", "--context", "2048", "--parallel", "2")
    assert done.status == 0, done.err
    header, fit, added = done.lines
    assert header.startswith("tiny: llama, ")
    assert fit == (
        "tiny: needs 640 MiB; gpu0 has 1000 MiB free, gpu1 1.0 GiB; it would run on gpu0"
    )
    assert added == f"tiny serves coder and critic on box: {folder}/60-tiny.yaml"
    assert "reports to no gateway yet" in done.err
    (model,) = settings(folder).models.values()
    assert (model.path, model.roles) == (weights, ("coder", "critic"))
    assert (model.context_size, model.parallel) == (2048, 2)
    assert settings(folder).instances == {}


def test_it_is_named_as_its_file_unless_it_is_given_a_name(
    ctl: Ctl, folder: Path, agent: OperatorApi, weights: Path, tmp_path: Path
) -> None:
    file = tmp_path / "My model-00001-of-00001.gguf"
    file.write_bytes(weights.read_bytes())
    named = {**USABLE, "model_id": "My-model"}
    agent.replies["GET /v1/node"] = {"node_id": "box", "models": [named], "gpus": []}
    done = ctl("model", "add", file, "--role", "coder", "--directory", folder, "--json")
    assert json.loads(done.out) == {
        "model_id": "My-model",
        "roles": ["coder"],
        "file": f"{folder}/60-My-model.yaml",
        "usable": True,
        "fit": "",
    }


def test_a_pinned_model_is_waited_for_and_leaves_the_other_gpus_their_instances(
    add: Ctl, folder: Path, agent: OperatorApi
) -> None:
    names = ("gpu0", "gpu0-2", "gpu1", "gpu2-mig0", "cpu0")
    node = {"node_id": "box", "gpus": GPUS, "instances": [{"instance": name} for name in names]}
    states = [{**node, "models": [{**USABLE, "state": each}]} for each in ("cold", "ready")]
    agent.replies["GET /v1/node"] = [states[0], states[0], states[1]]
    done = add("--role", "coder", "--pin", "gpu1")
    assert done.status == 0
    instances = settings(folder).instances
    assert {name: (each.model, each.pinned) for name, each in instances.items()} == {
        "gpu1": ("tiny", True),
        "gpu0": (None, False),
        "gpu2-mig0": (None, False),
    }
    assert (
        "It stays on gpu1. The agent has the instances now that its files name (gpu1," in done.err
    )


def test_a_host_without_gpus_keeps_its_own_instance_beside_a_pinned_model(
    add: Ctl, folder: Path, agent: OperatorApi
) -> None:
    model = {**USABLE, "state": "ready"}
    instances = [{"instance": "cpu0"}]
    node = {"node_id": "box", "gpus": [], "instances": instances, "models": [model]}
    agent.replies["GET /v1/node"] = node
    assert add("--role", "coder", "--pin", "cpu1").status == 0
    assert set(settings(folder).instances) == {"cpu1", "cpu0"}


@pytest.mark.parametrize(
    ("gpus", "says"),
    [(GPUS, "there is no gpu5 here, but gpu0 and gpu1"), ([], "there is no gpu5 here, and no GPU")],
)
def test_a_model_is_not_pinned_to_a_gpu_that_is_not_there(
    add: Ctl, folder: Path, agent: OperatorApi, gpus: Any, says: str
) -> None:
    agent.replies["GET /v1/node"] = {"node_id": "box", "models": [], "gpus": gpus, "instances": []}
    done = add("--role", "coder", "--pin", "gpu5-b")
    assert (done.status, untouched(folder)) == (1, True)
    assert says in done.err


def test_an_instance_that_runs_another_is_not_taken(
    add: Ctl, folder: Path, agent: OperatorApi
) -> None:
    (folder / "10-a.yaml").write_text(
        "models: {other: {path: /a.gguf, roles: [x]}}\ninstances: {gpu0: {model: other}}\n"
    )
    done = add("--role", "coder", "--pin", "gpu0")
    assert (done.status, untouched(folder)) == (1, True)
    assert f"gpu0 runs other already, by {folder}/10-a.yaml:2" in done.err


def test_a_name_that_is_taken_is_refused_with_its_place(
    add: Ctl, folder: Path, agent: OperatorApi
) -> None:
    (folder / "10-a.yaml").write_text("models: {tiny: {path: /a.gguf, roles: [x]}}\n")
    done = add("--role", "coder")
    assert (done.status, untouched(folder)) == (1, True)
    assert f"there is a model tiny already, at {folder}/10-a.yaml:1" in done.err
    (folder / "10-a.yaml").write_text("node_id: box\n")
    assert add("--role", "coder").status == 0
    assert "rolemeshctl model remove tiny" in add("--role", "coder").err


def test_a_file_of_that_name_is_never_replaced(add: Ctl, folder: Path, agent: OperatorApi) -> None:
    file = folder / "60-tiny.yaml"
    file.write_text("# mine\npolicy: {wedge_after_s: 90}\n")
    done = add("--role", "coder")
    assert (done.status, done.out) == (1, "")
    assert f"{file} exists already" in done.err
    assert file.read_text() == "# mine\npolicy: {wedge_after_s: 90}\n"


@pytest.mark.parametrize(
    "words",
    [
        ("--role", "a b"),
        ("--role", ""),
        ("--role", "x", "--id", "a/b"),
        ("--role", "x", "--pin", "tpu0"),
        ("--role", "co,der"),
        ("--role", "x", "--context", "0"),
        ("--role", "x", "--context", "99999999999"),
        ("--role", "x", "--wait", "nan"),
        ("--role", "x", "--wait", "inf"),
        ("--role", "x", "--wait", "-1"),
        ("--role", "x", "--parallel", "many"),
        (),
    ],
)
def test_what_makes_no_sense_is_a_mistake(add: Ctl, folder: Path, words: tuple[str, ...]) -> None:
    assert (add(*words).status, untouched(folder)) == (2, True)


def test_a_file_that_is_no_model_is_refused_with_what_is_wrong(
    ctl: Ctl, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "page.gguf"
    file.write_text("<!doctype html><title>404</title>")
    for path, says in ((file, "failed download"), (tmp_path / "none.gguf", "does not exist")):
        done = ctl("model", "add", path, "--role", "coder", "--directory", folder)
        assert (done.status, untouched(folder)) == (1, True)
        assert says in done.err


def test_a_configuration_that_would_be_refused_changes_nothing(add: Ctl, folder: Path) -> None:
    (folder / "10-a.yaml").write_text("lisen: 1\n")
    done = add("--role", "coder")
    assert (done.status, untouched(folder)) == (78, True)
    assert f"{folder}/10-a.yaml:1: lisen: unknown key" in done.err


def test_an_agent_that_has_not_looked_at_the_file_is_waited_for(
    add: Ctl, folder: Path, agent: OperatorApi
) -> None:
    node = {"node_id": "box", "gpus": []}
    early = {**node, "models": [{**USABLE, "file_mib": None}]}
    late = {**node, "models": [{**USABLE, "usable": False, "reason": "no llama-server in PATH"}]}
    agent.replies["GET /v1/node"] = [early, early, late]
    done = add("--role", "coder")
    assert done.status == 1
    assert "cannot be used now: no llama-server in PATH" in done.err


def test_a_model_that_cannot_be_used_is_told_with_the_reason(
    add: Ctl, folder: Path, agent: OperatorApi
) -> None:
    model = {**USABLE, "usable": False, "reason": "no llama-server in PATH"}
    agent.replies["GET /v1/node"] = {"node_id": "box", "models": [model], "gpus": GPUS}
    done = add("--role", "coder")
    assert done.status == 1
    assert f"tiny is added ({folder}/60-tiny.yaml), but cannot be used now: no llama" in done.err


@pytest.mark.parametrize(
    ("models", "says"), [([], "the agent does not know it yet"), (None, "does not answer")]
)
def test_an_agent_that_does_not_take_it_up_is_told(
    add: Ctl,
    folder: Path,
    agent: OperatorApi,
    models: Any,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent.replies["GET /v1/node"] = {"node_id": "box", "models": models, "gpus": GPUS}
    if models is None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    done = add("--role", "coder", "--wait", "0.01")
    assert done.status == 1
    assert says in done.err
    assert f"what was written stays: {folder}/60-tiny.yaml" in done.err


def test_whom_to_ask_is_printed_with_what_keeps_gateways_from_answering(
    add: Ctl, folder: Path, agent: OperatorApi
) -> None:
    known = {"models": [USABLE], "aliases": {"coder": ["coder"], "critic": []}}
    with operator_api() as gateway:
        gateway.replies["GET /v1/nodes/box"] = known
        (folder / "10-a.yaml").write_text(
            f"node_id: box\ngateways: [{{url: '{gateway.url}', api_key: k}}]\n"
        )
        done = add("--role", "coder", "--role", "critic")
    assert done.status == 0
    assert f"{gateway.url}: no alias there is answered by the role critic" in done.err
    assert done.lines[-2].startswith(f"curl {gateway.url}/v1/chat/completions -H ")
    assert '"model": "coder"' in done.lines[-1]


def test_a_gateway_that_cannot_be_asked_is_told(add: Ctl, folder: Path, agent: OperatorApi) -> None:
    with operator_api() as gateway:
        gateway.refuse("GET /v1/nodes/box", 401, "no")
        (folder / "10-a.yaml").write_text(
            f"node_id: box\ngateways: [{{url: '{gateway.url}', api_key: k}}]\n"
        )
        done = add("--role", "coder")
    assert done.status == 0
    assert f"{gateway.url}: it could not be asked" in done.err


def test_a_path_in_any_script_and_a_role_with_signs_of_the_shell(
    ctl: Ctl, folder: Path, agent: OperatorApi, weights: Path, tmp_path: Path
) -> None:
    file = tmp_path / "模型 é 🦙.gguf"
    file.write_bytes(weights.read_bytes())
    (folder / "10-a.yaml").write_text(
        "node_id: box\ngateways: [{url: 'http://127.0.0.1:1', api_key: k}]\n"
    )
    words = ("--directory", folder, "--id", "tiny")
    done = ctl("model", "add", file, "--role", "x'$(id)'", *words)
    assert done.status == 0, done.err
    assert settings(folder).models[ModelId("tiny")].path == file
    data = done.lines[-1].strip().removeprefix("-d ")
    assert json.loads(shlex.split(data)[0])["model"] == "x'$(id)'"
    assert ctl("model", "remove", "tiny", "--directory", folder).status == 0


def test_a_path_that_is_no_text_is_refused(ctl: Ctl, folder: Path, weights: Path) -> None:
    odd = folder.parent / os.fsdecode(b"b\xff.gguf")
    odd.write_bytes(weights.read_bytes())
    done = ctl("model", "add", odd, "--role", "x", "--id", "x", "--directory", folder)
    assert (done.status, untouched(folder)) == (2, True)
    assert "rename it" in done.err


def test_who_has_an_agent_of_their_own_is_told_to_have_it_reload(
    add: Ctl, folder: Path, agent: OperatorApi
) -> None:
    agent.replies["GET /v1/node"] = {"node_id": "box", "models": [], "gpus": GPUS}
    done = add("--role", "coder", "--wait", "0.01")
    assert done.status == 1
    line = "in force once the agent that reads it reloads (SIGHUP)"
    assert f"{folder}/60-tiny.yaml: {line}" in done.err


def test_a_named_agent_that_is_not_there_is_named(ctl: Ctl, weights: Path) -> None:
    done = ctl("model", "add", weights, "--role", "x", "--agent", "no-such-agent")
    assert done.status == 1
    assert "`rolemeshctl node join --agent no-such-agent` makes it" in done.err


@pytest.mark.parametrize(
    ("pooling", "key", "path"),
    [(0, None, "chat/completions"), (1, "embeddings", "embeddings"), (4, "rerank", "rerank")],
)
def test_what_a_model_is_for_is_read_in_its_header(
    ctl: Ctl,
    folder: Path,
    agent: OperatorApi,
    tmp_path: Path,
    pooling: int,
    key: str | None,
    path: str,
) -> None:
    (folder / "10-a.yaml").write_text(
        "node_id: box\ngateways: [{url: 'http://127.0.0.1:1', api_key: k}]\n"
    )
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_uint32("llama.pooling_type", pooling)
    writer.add_tensor("output.weight", np.zeros((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    words = ("--role", "x", "--directory", folder)
    done = ctl("model", "add", tmp_path / "tiny.gguf", *words)
    assert done.status == 0, done.err
    (model,) = settings(folder).models.values()
    assert (model.embeddings, model.rerank) == (key == "embeddings", key == "rerank")
    assert done.lines[-2].startswith(f"curl http://127.0.0.1:1/v1/{path} ")
    assert ctl("model", "remove", "tiny", "--directory", folder).status == 0
