"""Instances per GPU, on GPUs that only NVML knows: the library underneath pynvml is ours."""

import signal
from collections.abc import Callable
from pathlib import Path

from tests.integration.conftest import StartDaemon, model
from tests.integration.test_crashes import llama_servers
from tests.lab.mesh import get_json, instance_is_ready, instances, post_json
from tests.lab.nvml import FakeGpus
from tests.lab.poll import eventually
from tests.lab.processes import environment_of

CHAT = {"messages": [{"role": "user", "content": "go"}]}


async def test_each_gpu_gets_an_instance_and_its_llama_server_sees_that_gpu_alone(
    fake_gpus: FakeGpus, start_agent: StartDaemon, make_model: Callable[..., Path]
) -> None:
    uuids = [fake_gpus.add() for _ in range(2)]
    models = [model(make_model(f"gpu-{n}", says=f"number {n}"), f"m{n}", f"r{n}") for n in "01"]
    agent = await start_agent("box", {"models": models})

    for model_id, words in (("m0", "number 0"), ("m1", "number 1")):
        url = f"{agent.url}/v1/chat/completions"
        status, reply = await post_json(url, {"model": model_id, **CHAT})
        assert (status, reply["choices"][0]["message"]["content"]) == (200, words)

    by_name = await instances(agent)
    assert {name: entry["model_id"] for name, entry in by_name.items()} == {
        "gpu0": "m0",
        "gpu1": "m1",
    }
    seen = {
        variable.removeprefix(b"CUDA_VISIBLE_DEVICES=").decode()
        for pid in llama_servers(agent)
        for variable in environment_of(pid)
        if variable.startswith(b"CUDA_VISIBLE_DEVICES=")
    }
    assert seen == set(uuids)
    _, node = await get_json(f"{agent.url}/v1/node")
    assert [gpu["uuid"] for gpu in node["gpus"]] == uuids


async def test_a_lost_gpu_takes_only_its_own_instance_out(
    fake_gpus: FakeGpus, start_agent: StartDaemon, make_model: Callable[..., Path]
) -> None:
    gpus = [fake_gpus.add() for _ in range(2)]
    only = model(make_model("survivor", says="still here"), "m", "r")
    agent = await start_agent(
        "box", {"models": [only], "instances": {"gpu0": {}, "gpu1": {"model": "m"}}}
    )
    await eventually(lambda: instance_is_ready(agent, "gpu1"), what="gpu1 ready")

    fake_gpus.lose(gpus[0])
    agent.program.send(signal.SIGHUP)  # looks at the machine again
    await agent.program.line("reloaded")

    by_name = await instances(agent)
    assert not by_name["gpu0"]["usable"]
    assert "lost" in by_name["gpu0"]["reason"].lower()
    status, reply = await post_json(f"{agent.url}/v1/chat/completions", {"model": "m", **CHAT})
    assert (status, reply["choices"][0]["message"]["content"]) == (200, "still here")
