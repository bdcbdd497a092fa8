"""Loads that operators ask for, and what they are told meanwhile."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rolemesh.agent import loads
from rolemesh.errors import Unavailable
from rolemesh.names import InstanceName, ModelId
from tests.agent.builders import desired, model, node_settings
from tests.agent.stage import AgentStage, open_agent
from tests.lab.poll import eventually

A, B = ModelId("a"), ModelId("b")
SETTINGS = node_settings(model("a"), model("b"))
GPU0, GPU1 = desired("gpu0"), desired("gpu1")
LINES = {"Accept": "application/x-ndjson"}


@asynccontextmanager
async def following(stage: AgentStage, path: str, **body: Any) -> AsyncIterator[Any]:
    """Ask for lines; yields what gives the next one."""
    async with stage.http.post(f"/v1/node/{path}", headers=LINES, json=body) as reply:
        assert reply.content_type == "application/x-ndjson"

        async def line() -> Any:
            return json.loads(await reply.content.readline() or b"null")

        yield line


async def test_the_lines_of_a_load_end_with_what_came_of_it(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        stage.units.hold.clear()
        async with following(stage, "models/a/load") as line:
            assert await line() == {
                "model_id": "a",
                "instance": "gpu0",
                "state": "loading",
                "progress": 0.4,
                "reason": "",
            }
            stage.units.hold.set()
            assert await line() == {"model_id": "a", "state": "ready", "instances": ["gpu0"]}
            assert await line() is None


async def test_a_load_that_fails_says_so_in_its_last_line(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        stage.units.hold.clear()
        stage.units.failing[A] = "out of memory"
        async with following(stage, "models/a/load") as line:
            assert (await line())["state"] == "loading"
            stage.units.hold.set()
            error = (await line())["error"]
            assert (error["status"], error["reason"]) == (503, "failed")
            assert "out of memory" in error["message"]


async def test_what_is_decided_at_once_is_a_plain_reply(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        path = "/v1/node/models/{}/load"
        async with stage.http.post(path.format("a"), headers=LINES) as reply:
            assert (reply.status, (await reply.json())["state"]) == (200, "ready")
        async with stage.http.post(path.format("c"), headers=LINES) as reply:
            assert (reply.status, (await reply.json())["error"]["code"]) == (404, "model_not_found")


async def test_who_waits_for_others_to_finish_is_told_so(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        lease = await stage.fleet.lease(A, cost=1, wait_s=5)
        async with following(stage, "models/b/load", instance="gpu0") as line:
            draining = await line()
            assert (draining["state"], draining["reason"]) == ("draining", "a leaves first")
            lease.release()
            while (last := await line())["state"] != "ready":
                pass
            assert last["instances"] == ["gpu0"]


async def test_an_instance_that_is_loading_is_waited_for(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        stage.units.hold.clear()
        with pytest.raises(Unavailable):
            await stage.fleet.ensure_ready(A, wait_s=0)
        async with following(stage, "models/b/load", instance="gpu0") as line:
            waiting = await line()
            assert (waiting["state"], waiting["instance"]) == ("waiting", "gpu0")
            stage.units.hold.set()
            while (last := await line())["state"] != "ready":
                pass
            assert last["instances"] == ["gpu0"]


async def test_a_model_that_is_elsewhere_is_loaded_where_it_is_wanted(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0, GPU1) as stage:
        done = loads.Loads(stage.fleet, stage.view)
        assert (await done.load(A, None, wait_s=5))["instances"] == ["gpu0"]
        assert (await done.load(A, InstanceName("gpu1"), wait_s=5))["instances"] == ["gpu1"]
        assert [run[0] for run in stage.units.runs] == ["gpu0", "gpu1"]


async def test_a_load_onto_an_instance_fails_with_its_reason(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        done = loads.Loads(stage.fleet, stage.view)
        stage.units.failing[A] = "out of memory"
        with pytest.raises(Unavailable, match="out of memory"):
            await done.load(A, InstanceName("gpu0"), wait_s=5)
        stage.units.failing.clear()
        stage.units.hold.clear()
        with pytest.raises(Unavailable, match="still loading"):
            await done.load(B, InstanceName("gpu0"), wait_s=0)
        stage.units.hold.set()


async def test_an_instance_that_is_emptied_meanwhile_ends_the_wait(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        stage.units.hold.clear()
        done = loads.Loads(stage.fleet, stage.view)

        async def empty_it() -> None:
            await eventually(lambda: stage.units.runs, what="it loads")
            stage.fleet.unload_instance(InstanceName("gpu0"))
            stage.units.hold.set()

        load = done.load(A, InstanceName("gpu0"), wait_s=60)
        refusal, _ = await asyncio.gather(load, empty_it(), return_exceptions=True)
        assert isinstance(refusal, Unavailable)
        assert refusal.reason == "displaced"


async def test_who_leaves_does_not_end_the_load(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        stage.units.hold.clear()
        async with following(stage, "models/a/load") as line:
            assert (await line())["state"] == "loading"
        stage.units.hold.set()
        ready = ("gpu0",)
        assert await stage.fleet.ensure_ready(A, wait_s=10) == ready
