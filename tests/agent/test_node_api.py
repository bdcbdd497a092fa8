"""What an agent answers besides inference."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rolemesh.agent.instance import InstanceState
from rolemesh.agent.model_check import ModelProblems
from rolemesh.config.settings import ClientKey
from rolemesh.names import ModelId
from rolemesh.relay.control_socket import NAME, open_control_socket
from rolemesh.runtime.keys import digest_of
from tests.agent.builders import desired, inventory, model, node_settings
from tests.agent.stage import AgentStage, open_agent
from tests.fakes.unix_http import ask_at
from tests.lab.poll import eventually

SETTINGS = node_settings(model("a", parallel=2), "org/b")
GPU0, GPU1 = desired("gpu0"), desired("gpu1")
BROKEN = ModelProblems(node=("no llama-server",), models={})


async def call(
    stage: AgentStage,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: Any = None,
) -> tuple[int, dict[str, Any]]:
    async with stage.http.request(method, path, headers=headers, json=body) as response:
        return response.status, await response.json()


def is_stopped(stage: AgentStage, index: int) -> bool:
    return stage.fleet.snapshot().instances[index].view.state is InstanceState.STOPPED


async def test_health_is_the_process_and_nothing_else(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        stage.problems = BROKEN
        status, answer = await call(stage, "GET", "/health")
        assert (status, answer["status"]) == (200, "ok")


async def test_an_agent_that_can_load_a_model_is_ready(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        status, answer = await call(stage, "GET", "/ready")
        assert status == 200
        assert answer == {"status": "ready", "models": ["a", "org/b"], "missing": []}


async def test_an_agent_that_cannot_says_what_is_missing(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        stage.problems = BROKEN
        status, answer = await call(stage, "GET", "/ready")
        assert (status, answer["missing"]) == (503, ["no llama-server"])


async def test_usable_models_are_listed_and_the_others_have_reasons(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        stage.problems = ModelProblems(models={ModelId("a"): "no such file"})
        _, answer = await call(stage, "GET", "/v1/models")
        assert [each["id"] for each in answer["data"]] == ["org/b"]
        assert answer["rolemesh"]["unavailable_models"] == [{"id": "a", "reason": "no such file"}]
        assert (await call(stage, "GET", "/v1/models/org/b"))[1]["object"] == "model"
        status, answer = await call(stage, "GET", "/v1/models/a")
        assert (status, answer["error"]["reason"]) == (503, "no such file")
        status, answer = await call(stage, "GET", "/v1/models/c")
        assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_the_node_describes_itself(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        _, answer = await call(stage, "GET", "/v1/node")
        assert answer["node_id"] == "box"
        assert [each["model_id"] for each in answer["models"]] == ["a", "org/b"]
        assert answer["instances"][0]["state"] == "stopped"
        assert answer["gpus"][0]["uuid"] == "GPU-0"
        assert answer["host"]["cpus"] >= 1


async def test_a_model_is_loaded_and_unloaded_on_demand(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        status, answer = await call(stage, "POST", "/v1/node/models/org/b/load")
        assert status == 200
        assert answer == {"model_id": "org/b", "state": "ready", "instances": ["gpu0"]}
        status, answer = await call(stage, "POST", "/v1/node/models/org/b/unload")
        assert (status, answer["instances"]) == (202, ["gpu0"])
        await eventually(lambda: is_stopped(stage, 0), what="the instance is empty")


async def test_a_plan_says_where_models_would_run(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        _, answer = await call(stage, "GET", "/v1/node/plan?model=org/b")
        (plan,) = answer["plans"]
        assert (plan["model_id"], plan["outcome"], plan["instance"]) == ("org/b", "placed", "gpu0")
        _, answer = await call(stage, "GET", "/v1/node/plan")
        assert [plan["model_id"] for plan in answer["plans"]] == ["a", "org/b"]
        status, answer = await call(stage, "GET", "/v1/node/plan?model=c")
        assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_an_instance_is_switched_pinned_and_emptied(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0, GPU1) as stage:
        path = "/v1/node/instances/gpu1"
        status, answer = await call(stage, "POST", f"{path}/switch", body={"model_id": "org/b"})
        assert status == 200
        assert answer == {"model_id": "org/b", "state": "ready", "instances": ["gpu1"]}
        for verb, pinned in (("pin", True), ("unpin", False)):
            assert await call(stage, "POST", f"{path}/{verb}") == (
                200,
                {"instance": "gpu1", "pinned": pinned},
            )
            _, node = await call(stage, "GET", "/v1/node")
            assert [each["pinned"] for each in node["instances"]] == [False, pinned]
        status, answer = await call(stage, "POST", f"{path}/unload")
        assert (status, answer["instances"]) == (202, ["gpu1"])
        await eventually(lambda: is_stopped(stage, 1), what="the instance is empty")
        assert (await call(stage, "POST", f"{path}/unload"))[1]["instances"] == []


async def test_a_drained_instance_gets_nothing_until_it_is_undrained(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        path = "/v1/node/instances/gpu0"
        assert (await call(stage, "POST", "/v1/node/models/a/load"))[0] == 200
        assert (await call(stage, "POST", f"{path}/drain"))[1] == {
            "instance": "gpu0",
            "drained": True,
        }
        await eventually(lambda: is_stopped(stage, 0), what="the instance is empty")
        status, answer = await call(stage, "POST", "/v1/node/models/a/load?wait_s=0")
        assert (status, answer["error"]["reason"]) == (503, "no_instance")
        assert "drained by an operator" in answer["error"]["message"]
        assert (await call(stage, "POST", f"{path}/undrain"))[1]["drained"] is False
        assert (await call(stage, "POST", "/v1/node/models/a/load"))[0] == 200


async def test_gpus_are_numbered_anew_while_nothing_runs_on_them(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        stage.inventory = inventory(1, lost={0: "GPU-old"})
        assert (await call(stage, "POST", "/v1/node/models/a/load"))[0] == 200
        status, answer = await call(stage, "POST", "/v1/node/gpus/renumber")
        assert (status, answer["error"]["reason"]) == (503, "instances_running")
        await call(stage, "POST", "/v1/node/instances/gpu0/unload")
        await eventually(lambda: is_stopped(stage, 0), what="the instance is empty")
        _, answer = await call(stage, "POST", "/v1/node/gpus/renumber")
        assert answer == {
            "renumbered": {
                "GPU-1": {"was": "gpu1", "is": None},
                "GPU-old": {"was": "gpu0", "is": None},
                "GPU-0": {"was": None, "is": "gpu0"},
            }
        }


async def test_operators_of_this_machine_need_no_key(short_path: Path) -> None:
    keys = (ClientKey(name="ci", digest=digest_of("sesame")),)
    async with open_agent(short_path, replace(SETTINGS, auth=keys), GPU0) as stage:
        assert (await call(stage, "GET", "/v1/node"))[0] == 401
        async with open_control_socket(short_path / NAME, stage.api.of_operators()):
            status, answer = await ask_at(short_path / NAME, "GET", "/v1/node")
            assert (status, answer["node_id"]) == (200, "box")
            path = "/v1/node/instances/gpu0/switch"
            asked = await ask_at(short_path / NAME, "POST", path, json={"model_id": "a"})
            assert asked[1]["state"] == "ready"


async def test_it_tells_what_became_of_a_request(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        for model_id, status in (("a", 200), ("c", 404)):
            body = {"model": model_id, "input": "a"}
            headers = {"X-Request-Id": "trace-me"}
            path = "/v1/embeddings"
            async with stage.http.post(path, json=body, headers=headers) as response:
                assert response.status == status
        _, answer = await call(stage, "GET", "/v1/node/requests/trace-me")
        assert answer["request_id"] == "trace-me"
        first, second = answer["records"]
        assert (first["status"], first["model_id"], first["instance"]) == (200, "a", "gpu0")
        assert (second["status"], second["node"]) == (404, "box")
        _, answer = await call(stage, "GET", "/v1/node/requests/another")
        assert answer["records"] == []


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("models/c/load", None, 404, "model_not_found"),
        ("models/c/unload", None, 404, "model_not_found"),
        ("models/a/load?wait_s=soon", None, 400, "bad_request"),
        ("models/a/load?wait_s=-1", None, 400, "bad_request"),
        ("models/a/load", [], 400, "bad_request"),
        ("models/a/load", {"instance": 0}, 400, "bad_request"),
        ("models/a/load", {"instance": "gpu7"}, 404, "unknown_instance"),
        ("models/a/delete", None, 404, "unknown_path"),
        ("instances/gpu0/switch", None, 400, "bad_request"),
        ("instances/gpu0/switch", {"model_id": "c"}, 404, "model_not_found"),
        ("instances/gpu7/switch", {"model_id": "a"}, 404, "unknown_instance"),
        ("instances/gpu7/unload", None, 404, "unknown_instance"),
        ("instances/gpu7/pin", None, 404, "unknown_instance"),
        ("instances/gpu7/drain", None, 404, "unknown_instance"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    path: str, body: Any, status: int, code: str, short_path: Path
) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        found, answer = await call(stage, "POST", f"/v1/node/{path}", body=body)
        assert (found, answer["error"]["code"]) == (status, code)


async def test_a_load_is_waited_for_no_longer_than_asked(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        stage.units.hold.clear()
        status, answer = await call(stage, "POST", "/v1/node/models/a/load?wait_s=0.05")
        assert (status, answer["error"]["reason"]) == (503, "loading")
        stage.units.hold.set()


async def test_with_keys_only_health_and_ready_are_open(short_path: Path) -> None:
    keys = (ClientKey(name="ci", digest=digest_of("sesame")),)
    async with open_agent(short_path, replace(SETTINGS, auth=keys), GPU0) as stage:
        for path in ("/health", "/ready"):
            assert (await call(stage, "GET", path))[0] == 200
        for method, path in (
            ("GET", "/v1/models"),
            ("GET", "/v1/models/a"),
            ("GET", "/v1/node"),
            ("GET", "/v1/node/plan"),
            ("GET", "/v1/node/requests/any"),
            ("POST", "/v1/node/instances/gpu0/pin"),
            ("POST", "/v1/node/gpus/renumber"),
            ("POST", "/v1/node/models/a/load"),
            ("POST", "/v1/node/models/a/unload"),
        ):
            assert (await call(stage, method, path))[0] == 401
            allowed = await call(stage, method, path, {"X-Api-Key": "sesame"})
            assert allowed[0] in {200, 202}


async def test_an_inference_path_says_that_it_takes_posts(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        status, answer = await call(stage, "GET", "/v1/chat/completions")
        assert (status, answer["error"]["code"]) == (405, "method_not_allowed")
