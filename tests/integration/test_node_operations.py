"""rolemeshctl tells a real agent what to run: by its control socket, and by way of a gateway."""

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.conftest import StartDaemon, model
from tests.lab.mesh import PROGRAMS, Daemon, instances, usable_models
from tests.lab.poll import eventually


class Operator:
    """Somebody who types commands on the host of these daemons."""

    def __init__(self, folder: Path) -> None:
        self._environ = {
            "PATH": "/usr/bin:/bin",
            "XDG_CONFIG_HOME": str(folder / "none"),
            "XDG_RUNTIME_DIR": str(folder),
        }
        self.gateway = ("--url", f"unix:{folder}/rolemesh/gateway/control.sock")

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            PROGRAMS / "rolemeshctl",
            *words,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environ,
        )

    async def run(self, *words: str, status: int = 0) -> tuple[str, str]:
        process = await self.start(*words)
        out, err = await process.communicate()
        assert process.returncode == status, (words, out, err)
        return out.decode(), err.decode()

    async def json(self, *words: str) -> Any:
        return json.loads((await self.run(*words, "--json"))[0])


async def states(agent: Daemon) -> dict[str, tuple[str, str | None]]:
    return {
        name: (each["state"], each["model_id"]) for name, each in (await instances(agent)).items()
    }


async def test_models_are_loaded_switched_pinned_and_unloaded(
    start_gateway: StartDaemon,
    start_agent: StartDaemon,
    make_model: Callable[..., Path],
    short_path: Path,
) -> None:
    environment = {"XDG_RUNTIME_DIR": str(short_path)}
    gateway = await start_gateway({"aliases": {"from_roles": True}}, environment=environment)
    models = [model(make_model(name), f"{name}-gguf", name) for name in ("one", "two")]
    configuration = {"models": models, "instances": {"cpu0": {}, "cpu1": {}}}
    agent = await start_agent("box", configuration, gateway, environment=environment)
    await eventually(lambda: usable_models(gateway), what="the models are listed")
    operator = Operator(short_path)

    (plan,) = (await operator.json("node", "plan", "one-gguf"))["plans"]
    assert (plan["outcome"], plan["instance"]) == ("placed", "cpu0")

    out, _ = await operator.run("load", "one-gguf", "--on", "cpu1")
    assert out.startswith("one-gguf is ready on box, cpu1 (")
    out, _ = await operator.run("load", "two-gguf", *operator.gateway)
    assert out.startswith("two-gguf is ready on box, cpu0 (")
    out, _ = await operator.run("switch", "cpu0", "one-gguf", "--node", "box", *operator.gateway)
    assert out.startswith("one-gguf is ready on box, cpu0 (")
    assert await states(agent) == {"cpu0": ("ready", "one-gguf"), "cpu1": ("ready", "one-gguf")}

    for name in ("cpu0", "cpu1"):
        await operator.run("pin", name)
    _, err = await operator.run("load", "two-gguf", status=1)
    assert "cpu0: pinned, runs one-gguf; cpu1: pinned, runs one-gguf" in err
    await operator.run("unpin", "cpu1")
    await operator.run("drain", "box/cpu1", "--wait")
    await operator.run("unload", "cpu0", *operator.gateway)
    await eventually(lambda: _all_stopped(agent), what="both instances are empty", deadline_s=20.0)
    listed = (await operator.json("models", *operator.gateway))["models"]
    assert {each["model_id"]: each["architecture"] for each in listed} == {
        "one-gguf": "llama",
        "two-gguf": "llama",
    }


async def _all_stopped(agent: Daemon) -> bool:
    return {state for state, _ in (await states(agent)).values()} == {"stopped"}


async def test_who_stops_waiting_does_not_stop_the_load(
    start_agent: StartDaemon, make_model: Callable[..., Path], short_path: Path
) -> None:
    slow = model(make_model("slow", big_mib=400), "slow-gguf", "slow")
    agent = await start_agent(
        "box",
        {"models": [slow], "instances": {"cpu0": {}}},
        environment={"XDG_RUNTIME_DIR": str(short_path)},
    )
    loading = await Operator(short_path).start("load", "slow-gguf")
    assert loading.stderr is not None
    assert b"slow-gguf on cpu0: " in await loading.stderr.readline()
    loading.send_signal(signal.SIGINT)
    _, err = await loading.communicate()
    assert loading.returncode == 130
    assert b"slow-gguf goes on loading" in err
    await eventually(lambda: _is_ready(agent), what="the model is ready", deadline_s=60.0)


async def _is_ready(agent: Daemon) -> bool:
    return (await states(agent))["cpu0"] == ("ready", "slow-gguf")
