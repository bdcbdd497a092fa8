"""Servers of other kinds as static upstreams: llama-server's router, another RoleMesh, LiteLLM."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import yaml

from tests.integration.conftest import StartDaemon
from tests.lab.litellm import NoLiteLlm
from tests.lab.litellm import litellm as find_litellm
from tests.lab.mesh import Daemon, get_json, post_json
from tests.lab.poll import eventually
from tests.lab.processes import Program, free_port, running

KEY = "sk-upstream"
CHAT: Any = {"messages": [{"role": "user", "content": "hello"}]}


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is no RoleMesh of this test."""

    program: Program
    url: str


StartServer = Callable[..., Awaitable[Server]]


@pytest.fixture
async def servers() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def start_server(servers: AsyncExitStack, short_path: Path) -> StartServer:
    """Start a server: await start_server("name", program, *args, asks="/health")."""

    async def start(
        name: str,
        *command: str | Path,
        asks: str = "/health",
        environment: Mapping[str, str] | None = None,
    ) -> Server:
        port = free_port()
        whole = [*command, "--host", "127.0.0.1", "--port", str(port)]
        log = short_path / f"{name}.log"
        program = await servers.enter_async_context(
            running(whole, log=log, environment=environment)
        )
        server = Server(program, f"http://127.0.0.1:{port}")
        await eventually(
            lambda: is_there(server, asks), what=f"{name} answers {asks}", deadline_s=90
        )
        return server

    return start


async def is_there(server: Server, path: str) -> bool:
    lines = server.program.lines()
    assert server.program.status is None, "\n".join(lines)
    try:
        return (await get_json(f"{server.url}{path}"))[0] == 200
    except (aiohttp.ClientError, ValueError):
        return False


@pytest.fixture(scope="session")
def litellm() -> Path:
    """Path of LiteLLM's proxy; the test is skipped where it cannot be installed."""
    try:
        return find_litellm()
    except NoLiteLlm as err:
        pytest.skip(str(err))


def proxy(server: Server | Daemon, model: str, **more: Any) -> dict[str, Any]:
    return {"type": "proxy", "proxy_url": server.url, "openai_model_name": model, **more}


async def unavailable(gateway: Daemon) -> dict[str, str]:
    """Return which aliases cannot answer, and why."""
    _, listing = await get_json(f"{gateway.url}/v1/models")
    return {each["id"]: each["reason"] for each in listing["rolemesh"]["unavailable_models"]}


async def says(gateway: Daemon, alias: str) -> str:
    """Return what an alias answers, asked plainly; raises AssertionError for a refusal."""
    url = f"{gateway.url}/v1/chat/completions"
    status, reply = await post_json(url, {"model": alias, **CHAT})
    assert status == 200, reply
    return str(reply["choices"][0]["message"]["content"]).strip()


async def streams(gateway: Daemon, alias: str) -> str:
    """Return what an alias answers in a stream, to the openai client."""
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(model=alias, **CHAT, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream]).strip()


# --- llama-server's router --------------------------------------------------------------------


async def test_the_router_of_llama_server_answers_for_every_model_that_it_can_load(
    start_gateway: StartDaemon,
    start_server: StartServer,
    llama_server: Path,
    make_model: Callable[..., Path],
    short_path: Path,
) -> None:
    models = short_path / "models"
    models.mkdir()
    for name in ("first", "second"):
        shutil.copy(make_model(name, says=f"I am {name} ."), models / f"{name}.gguf")
    (models / "broken.gguf").write_bytes(b"not a model")
    options = ("--models-dir", models, "--models-max", "1", "--offline", "--api-key", KEY)
    router = await start_server("router", llama_server, *options, "--ctx-size", "512")
    aliases = {
        name: proxy(router, name, api_key=KEY) for name in ("first", "second", "broken", "nosuch")
    }
    gateway = await start_gateway({"models": {**aliases, "keyless": proxy(router, "first")}})
    assert await unavailable(gateway) == {
        "nosuch": f"{router.url} has no model nosuch (it has broken, first, second)",
        "keyless": f"{router.url} wants a key, and none is set (api_key, api_key_file): "
        "401 (Invalid API Key)",
    }
    for name in ("first", "second", "first"):
        assert await says(gateway, name) == f"I am {name} ."
    assert await streams(gateway, "second") == "I am second ."
    url = f"{gateway.url}/v1/chat/completions"
    status, reply = await post_json(url, {"model": "broken", **CHAT})
    assert (status, reply["error"]["message"]) == (500, "model name=broken failed to load")


async def test_a_router_that_loads_nothing_by_itself_has_its_unloaded_models_unavailable(
    start_gateway: StartDaemon,
    start_server: StartServer,
    llama_server: Path,
    make_model: Callable[..., Path],
    short_path: Path,
) -> None:
    models = short_path / "models"
    models.mkdir()
    shutil.copy(make_model("first", says="I am first ."), models / "first.gguf")
    options = ("--models-dir", models, "--no-models-autoload", "--offline", "--ctx-size", "512")
    router = await start_server("router", llama_server, *options)
    gateway = await start_gateway({"models": {"first": proxy(router, "first")}})
    reason = f"{router.url} has not loaded first, and loads no model by itself"
    assert (await unavailable(gateway))["first"].startswith(reason)
    assert (await post_json(f"{router.url}/models/load", {"model": "first"}))[0] == 200

    async def is_usable() -> bool:
        return not await unavailable(gateway)

    await eventually(is_usable, what="first is usable", deadline_s=30)
    assert await says(gateway, "first") == "I am first ."


# --- another RoleMesh -------------------------------------------------------------------------


async def test_another_rolemesh_is_an_upstream_that_says_itself_what_it_cannot_do(
    start_gateway: StartDaemon,
    start_server: StartServer,
    llama_server: Path,
    make_model: Callable[..., Path],
) -> None:
    path = make_model("far", says="I am far away .")
    llama = await start_server("llama", llama_server, "-m", path, "--ctx-size", "512")
    far = await start_gateway(
        {
            "auth": {"client_api_keys": [KEY]},
            "models": {
                "planner": proxy(llama, "whatever"),
                "coder": {"type": "discovered"},
            },
        },
        name="far",
    )
    near = await start_gateway(
        {
            "models": {
                alias: proxy(far, alias, api_key=KEY) for alias in ("planner", "coder", "critic")
            }
        },
        name="near",
    )
    assert await unavailable(near) == {
        "coder": f"{far.url} says of coder: no node announces the role coder",
        "critic": f"{far.url} has no model critic (it has planner)",
    }
    assert await says(near, "planner") == "I am far away ."
    assert await streams(near, "planner") == "I am far away ."
    await llama.program.stop()

    async def reason() -> str:
        return (await unavailable(near)).get("planner", "")

    await eventually(reason, what="planner is unavailable here, too", deadline_s=30)
    assert (await reason()).startswith(f"{far.url} says of planner: no connection to {llama.url}")


# --- LiteLLM ----------------------------------------------------------------------------------


@pytest.mark.timeout(600)  # the first time LiteLLM is installed
async def test_litellm_is_an_upstream_whose_costly_health_check_is_never_asked(
    litellm: Path,
    start_gateway: StartDaemon,
    start_server: StartServer,
    llama_server: Path,
    make_model: Callable[..., Path],
    short_path: Path,
) -> None:
    path = make_model("behind", says="I am behind a proxy .")
    llama = await start_server("llama", llama_server, "-m", path, "--ctx-size", "512")
    config = short_path / "litellm.yaml"
    deployment = {"model": "openai/tiny", "api_base": f"{llama.url}/v1", "api_key": "none"}
    config.write_text(
        yaml.safe_dump(
            {
                "model_list": [{"model_name": "coder", "litellm_params": deployment}],
                "general_settings": {"master_key": KEY},
            }
        )
    )
    proxied = await start_server(
        "litellm",
        *(litellm, "--config", config),
        asks="/health/liveliness",
        environment={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )
    gateway = await start_gateway(
        {
            "models": {
                "coder": proxy(proxied, "coder", api_key=KEY),
                "stranger": proxy(proxied, "coder", api_key="sk-wrong"),
            }
        }
    )
    found = await unavailable(gateway)
    assert set(found) == {"stranger"}
    assert found["stranger"].startswith(f"{proxied.url} ")
    assert await says(gateway, "coder") == "I am behind a proxy ."
    assert await streams(gateway, "coder") == "I am behind a proxy ."
    log = "\n".join(proxied.program.lines())
    assert "GET /v1/models" in log
    assert "GET /health " not in log
