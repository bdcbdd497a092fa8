"""The original's own example files load unchanged, and route as its description says."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.integration.conftest import StartDaemon
from tests.lab.mesh import PROGRAMS, Daemon, get_json, post_json, write_drop_in
from tests.lab.poll import eventually
from tests.lab.processes import free_port, is_free, running

SEED = Path(__file__).parents[2] / "etc" / "examples" / "seed"
CHAT = {"messages": [{"role": "user", "content": "Say hello in 3 words."}]}
Command = list[str | Path]

NEVER_ENDING = "one two three four five six seven eight nine ten"


@asynccontextmanager
async def seed_gateway(folder: Path, config: Path, **environment: str) -> AsyncIterator[Daemon]:
    """Run `rolemesh-gateway` on one of the original's files."""
    port, state = free_port(), folder / "state"
    program_path = PROGRAMS / "rolemesh-gateway"
    command: Command = [program_path, "--port", str(port), "--state-dir", state]
    if not environment:
        command += ["--config", config]
    async with running(command, log=folder / "gateway.log", environment=environment) as program:
        url = f"http://127.0.0.1:{port}"
        await program.line(r"listening on")
        yield Daemon(program=program, url=url, drop_ins=folder, state=state)


@asynccontextmanager
async def llama_on(port: int, program: Path, model_path: Path, folder: Path) -> AsyncIterator[None]:
    """Run a llama-server of the user's own on a port, as the original's quick start does."""
    assert is_free(port), f"port {port} is taken; the example file names it"
    command: Command = [
        program,
        "-m",
        model_path,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "-np",
        "1",
    ]
    async with running(command, log=folder / f"llama-{port}.log"):
        await eventually(lambda: _healthy(port), what=f"llama-server on {port}", deadline_s=30)
        yield


async def _healthy(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("how", ["option", "environment"])
async def test_two_proxies_answer_with_their_own_words_and_defaults(
    how: str, llama_server: Path, make_model: Callable[..., Path], short_path: Path
) -> None:
    planner = make_model("seed-planner", says=f"planner {NEVER_ENDING}", loop=True)
    writer = make_model("seed-writer", says=f"writer {NEVER_ENDING}", loop=True)
    config = SEED / "models.yaml"
    environment = {"ROLE_MESH_CONFIG": str(config)} if how == "environment" else {}
    async with (
        llama_on(8011, llama_server, planner, short_path),
        llama_on(8012, llama_server, writer, short_path),
        seed_gateway(short_path, config, **environment) as gateway,
    ):
        key = "change-me-client-key"
        _, models = await get_json(f"{gateway.url}/v1/models", key=key)
        assert [entry["id"] for entry in models["data"]] == ["planner", "writer"]
        assert (await get_json(f"{gateway.url}/ready"))[0] == 200
        assert (await get_json(f"{gateway.url}/v1/models"))[0] == 401

        url = f"{gateway.url}/v1/chat/completions"
        for alias, tokens in (("planner", 128), ("writer", 256)):
            status, reply = await post_json(url, {"model": alias, **CHAT}, key=key)
            assert status == 200
            assert reply["choices"][0]["message"]["content"].startswith(f"{alias} one two")
            assert reply["usage"]["completion_tokens"] == tokens  # defaults.max_tokens
        _, reply = await post_json(url, {"model": "writer", "max_tokens": 5, **CHAT}, key=key)
        assert reply["usage"]["completion_tokens"] == 5  # the client's own word counts


async def test_an_alias_whose_backend_is_down_is_listed_as_unavailable_and_not_ready(
    short_path: Path,
) -> None:
    assert is_free(8011)
    async with seed_gateway(short_path, SEED / "models.yaml") as gateway:
        _, models = await get_json(f"{gateway.url}/v1/models", key="change-me-client-key")
        assert models["data"] == []
        unavailable = {
            entry["id"]: entry["reason"] for entry in models["rolemesh"]["unavailable_models"]
        }
        assert set(unavailable) == {"planner", "writer"}
        assert "Connection refused" in unavailable["planner"]
        assert (await get_json(f"{gateway.url}/ready"))[0] == 503
        assert (await get_json(f"{gateway.url}/health"))[0] == 200


@asynccontextmanager
async def ollama() -> AsyncIterator[list[str]]:
    """Run a stand-in for Ollama on its own port: it knows one model, and only by its own name.

    It has no /health, and answers 404 to a model it does not have, as Ollama's OpenAI surface
    does. Yields the models it was asked for.
    """
    asked: list[str] = []

    async def chat(request: web.Request) -> web.Response:
        name = json.loads(await request.read())["model"]
        asked.append(name)
        if name != "dolphin3:latest":
            error = {"message": f'model "{name}" not found', "type": "not_found_error"}
            return web.json_response({"error": error}, status=404)
        message = {"role": "assistant", "content": "Hello from Ollama"}
        return web.json_response({"model": name, "choices": [{"index": 0, "message": message}]})

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "dolphin3:latest"}]})

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/v1/models", models)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 11434).start()
    try:
        yield asked
    finally:
        await runner.cleanup()


async def test_ollama_is_asked_for_the_model_that_the_defaults_name(short_path: Path) -> None:
    async with (
        ollama() as asked,
        seed_gateway(short_path, SEED / "models-ollama.yaml") as gateway,
    ):
        url = f"{gateway.url}/v1/chat/completions"
        status, reply = await post_json(url, {"model": "planner", **CHAT})

    assert status == 200
    assert reply["choices"][0]["message"]["content"] == "Hello from Ollama"
    assert asked == ["dolphin3:latest"]


async def test_the_node_agent_example_loads_and_says_what_is_missing(
    llama_server: Path, make_model: Callable[..., Path], short_path: Path
) -> None:
    """As it stands its model file does not exist; an override names one that does."""
    port = free_port()
    command: Command = [
        *(PROGRAMS / "rolemesh-node-agent", "--config", SEED / "node_agent.yaml"),
        *("--port", str(port), "--state-dir", short_path / "state"),
    ]
    async with running(command, log=short_path / "bare.log") as agent:
        await agent.line(r"GET /ready|2 models|1 model|missing")
        _, listing = await get_json(f"http://127.0.0.1:{port}/v1/models")
        (entry,) = listing["rolemesh"]["unavailable_models"]
        assert entry["id"] == "planner-gguf"
        assert "/models/SomePlannerModel.Q5_K_M.gguf" in entry["reason"]

    path = make_model("seed-node", says="from the override")
    local = write_drop_in(
        short_path,
        "local.yaml",
        {
            "llama_server": {"path": str(llama_server)},
            "models": [{"model_id": "planner-gguf", "path": str(path)}],
        },
    )
    command += ["--config-override", local]
    async with running(command, log=short_path / "override.log") as agent:
        await agent.line(r"1 model")
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        status, reply = await post_json(url, {"model": "planner-gguf", **CHAT})
        assert (status, reply["choices"][0]["message"]["content"]) == (200, "from the override")


async def test_a_minimal_register_request_makes_a_role_usable_until_it_is_stale(
    start_gateway: StartDaemon,
    llama_server: Path,
    make_model: Callable[..., Path],
    short_path: Path,
) -> None:
    gateway = await start_gateway(
        {"models": {"tutor": {"type": "discovered", "role": "teacher"}}},
        environment={"ROLE_MESH_NODE_STALE_AFTER_S": "2"},
    )
    port = free_port()
    path = make_model("foreign", says="Let me teach you")
    minimal = {
        "node_id": "foreign-box",
        "base_url": f"http://127.0.0.1:{port}",
        "models": [{"model_id": "qwen3-8b", "roles": ["teacher", "critic"]}],
    }
    url = f"{gateway.url}/v1/chat/completions"
    async with llama_on(port, llama_server, path, short_path):
        assert (await post_json(url, {"model": "tutor", **CHAT}))[0] == 503
        assert (await post_json(f"{gateway.url}/v1/nodes/register", minimal))[0] == 200
        status, reply = await post_json(url, {"model": "tutor", **CHAT})
        assert (status, reply["choices"][0]["message"]["content"]) == (200, "Let me teach you")

        await eventually(lambda: _is_stale(gateway), what="the node is stale", deadline_s=10)
        status, reply = await post_json(url, {"model": "tutor", **CHAT})
        assert status == 503
        assert "stale" in reply["error"]["reason"]


async def _is_stale(gateway: Daemon) -> bool:
    _, models = await get_json(f"{gateway.url}/v1/models")
    return bool(models["data"] == [])
