"""What an agent answers besides inference."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rolemesh.agent.model_check import ModelProblems
from rolemesh.config.settings import ClientKey
from rolemesh.names import ModelId
from rolemesh.runtime.keys import digest_of
from tests.agent.builders import desired, model, node_settings
from tests.agent.stage import AgentStage, open_agent
from tests.lab.poll import eventually

SETTINGS = node_settings(model("a", parallel=2), "org/b")
GPU0 = desired("gpu0")
BROKEN = ModelProblems(node=("no llama-server",), models={})


async def call(
    stage: AgentStage, method: str, path: str, headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    async with stage.http.request(method, path, headers=headers) as response:
        return response.status, await response.json()


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
        await eventually(
            lambda: stage.fleet.snapshot().instances[0].view.state.value == "stopped",
            what="the instance is empty",
        )


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
    ("path", "status", "code"),
    [
        ("/v1/node/models/c/load", 404, "model_not_found"),
        ("/v1/node/models/c/unload", 404, "model_not_found"),
        ("/v1/node/models/a/load?wait_s=soon", 400, "bad_request"),
        ("/v1/node/models/a/load?wait_s=-1", 400, "bad_request"),
        ("/v1/node/models/a/delete", 404, "unknown_path"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    path: str, status: int, code: str, short_path: Path
) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        found, answer = await call(stage, "POST", path)
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
            ("GET", "/v1/node/requests/any"),
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
