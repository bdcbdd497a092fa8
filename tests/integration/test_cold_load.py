"""A model that is not loaded is loaded by the first request that needs it."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from tests.integration.conftest import StartDaemon, model
from tests.lab.mesh import instances, model_states, post_json, usable_models
from tests.lab.poll import eventually

CHAT = {"messages": [{"role": "user", "content": "go"}]}


async def test_the_first_request_loads_a_cold_model_and_all_waiters_share_the_load(
    start_gateway: StartDaemon, start_agent: StartDaemon, make_model: Callable[..., Path]
) -> None:
    gateway = await start_gateway({"aliases": {"from_roles": True}})
    cold = model(make_model("cold", says="Now I am awake ."), "cold-gguf", "sleeper", parallel=4)
    agent = await start_agent("box", {"models": [cold], "instances": {"cpu0": {}}}, gateway)
    await eventually(lambda: usable_models(gateway), what="the cold model is listed")
    assert await model_states(agent) == {"cold-gguf": "cold"}

    url = f"{gateway.url}/v1/chat/completions"
    replies = await asyncio.gather(
        *(post_json(url, {"model": "sleeper", **CHAT}) for _ in range(4))
    )

    said = {reply["choices"][0]["message"]["content"] for _, reply in replies}
    assert said == {"Now I am awake ."}
    assert await model_states(agent) == {"cold-gguf": "ready"}
    loads = [line for line in agent.program.lines() if "loading -> ready" in line]
    assert len(loads) == 1


async def test_two_models_take_turns_on_one_instance(
    start_agent: StartDaemon, make_model: Callable[..., Path]
) -> None:
    first = model(make_model("first", says="one"), "first-gguf", "a")
    second = model(make_model("second", says="two"), "second-gguf", "b")
    agent = await start_agent("box", {"models": [first, second], "instances": {"cpu0": {}}})

    said = []
    for model_id in ("first-gguf", "second-gguf", "first-gguf"):
        _, reply = await post_json(f"{agent.url}/v1/chat/completions", {"model": model_id, **CHAT})
        said.append(reply["choices"][0]["message"]["content"])
        assert (await instances(agent))["cpu0"]["model_id"] == model_id

    assert said == ["one", "two", "one"]
