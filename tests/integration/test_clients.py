"""The clients of others get through gateway and agent what they get from llama-server itself.

Each program in clients/ is run against both, and what it prints is compared.
"""

import json
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.integration.conftest import StartDaemon
from tests.integration.conftest import model as model_entry
from tests.lab.clients import REPOSITORY, Clients
from tests.lab.mesh import Daemon, get_json, usable_models
from tests.lab.poll import eventually
from tests.lab.processes import free_port, run_to_end, running

if TYPE_CHECKING:
    from tests.lab.steps import Command

KEY = "sk-clients"
SAYS = "It is 21 degrees in Paris and 25 at Rome ."
CALLS = tuple(
    f'<tool_call>\n{{"name": "get_weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'
    for city in ("Paris", "Rome")
)
SLOTS, CONTEXT = 2, 4096
ONE_THREAD = ("--threads", "1")  # many that wait for each other are slow on few cores

# They differ between two answers to the same request.
VARYING = frozenset({
    "call_id", "completed_at", "created", "created_at", "id", "item_id", "response_id", "timings",
    "tool_call_id", "tool_use_id",
})  # fmt: skip

# What fails with llama-server itself, and how: it does not look at the `text.format` of a response,
# remembers none, and shows a model no image that has no projector.
FAILS_DIRECTLY = {
    "image": "InternalServerError",
    "response_continued": "BadRequestError",
    "response_parsed": "ValidationError",
    "too_long": "BadRequestError",
}

# Each program: its client's own class for an unknown model, and a check that goes through all calls.
PROGRAMS = {
    "openai_python": ("NotFoundError", "chat_tools"),
    "openai_node": ("NotFoundError", "chat_tool_runner_stream"),
    "anthropic_python": ("NotFoundError", "tool_runner"),
    "openai_agents": ("NotFoundError", "by_responses_stream"),
    "pydantic_agents": ("ModelNotFoundError", "answer_stream"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model, and how it is served and asked for: by its role at a gateway."""

    model_id: str
    role: str
    path: Path
    args: tuple[str, ...]


@pytest.fixture
def weather_model(make_model: Callable[..., Path]) -> Path:
    """Return a model that asks for the weather in Paris, then in Rome, then tells of both."""
    return make_model("weather", says=SAYS, calls=CALLS)


@pytest.fixture
def served(weather_model: Path, make_model: Callable[..., Path]) -> tuple[Served, ...]:
    """Return a model to chat with, one for embeddings, and one that does not end.

    Without a cache it does not matter to `usage` what was asked before. llama-server calls itself
    what it is asked for in a reply with embeddings, and only there.
    """
    talker = make_model("talker", says="one two three four five six seven eight", loop=True)
    chat = ("--no-cache-prompt", *ONE_THREAD)
    embed = ("--embeddings", "--pooling", "mean", *ONE_THREAD)
    return (
        Served(model_id="weather-1", role="reporter", path=weather_model, args=chat),
        Served(model_id="embedder", role="embedder", path=weather_model, args=embed),
        Served(model_id="talker-1", role="talker", path=talker, args=ONE_THREAD),
    )


@asynccontextmanager
async def llama_on_a_port(program: Path, model: Served, folder: Path) -> AsyncIterator[str]:
    """Run a llama-server as an agent would, but on a port; yields its URL."""
    port = free_port()
    command: Command = [
        *(program, "-m", model.path, "--alias", model.model_id, "--api-key", KEY),
        *("--host", "127.0.0.1", "--port", str(port), "--device", "none"),
        *("-c", str(SLOTS * CONTEXT), "-np", str(SLOTS), *model.args),
    ]
    url = f"http://127.0.0.1:{port}"
    async with running(command, log=folder / f"{model.model_id}.log"):
        await eventually(lambda: _is_healthy(url), what=f"{model.role} answers", deadline_s=60)
        yield url


async def _is_healthy(url: str) -> bool:
    try:
        return (await get_json(f"{url}/health"))[0] == 200
    except aiohttp.ClientError:
        return False


@pytest.fixture
async def direct(
    llama_server: Path, served: tuple[Served, ...], tmp_path: Path
) -> AsyncIterator[Mapping[str, str]]:
    """Say where llama-servers are asked directly."""
    async with AsyncExitStack() as stack:
        urls = [
            await stack.enter_async_context(llama_on_a_port(llama_server, model, tmp_path))
            for model in served
        ]
        yield environment(served, urls)


@pytest.fixture
async def through_gateway(
    start_gateway: StartDaemon, start_agent: StartDaemon, served: tuple[Served, ...]
) -> Mapping[str, str]:
    """Say where a gateway is asked for the same models by their roles."""
    gateway = await start_gateway(
        {"auth": {"client_api_keys": [KEY]}, "aliases": {"from_roles": True}}
    )
    size = {"parallel": SLOTS, "context_size": CONTEXT}
    entries = [
        {**model_entry(model.path, model.model_id, model.role, **size), "args": [*model.args]}
        for model in served
    ]
    instances = {f"cpu{number}": {"model": model.model_id} for number, model in enumerate(served)}
    await start_agent("box", {"models": entries, "instances": instances}, gateway)
    await all_usable(gateway, KEY, {model.role for model in served})
    return environment(served, [gateway.url] * len(served))


async def all_usable(gateway: Daemon, key: str, roles: set[str]) -> None:
    """Return as soon as all roles can be asked for."""

    async def usable() -> bool:
        return await usable_models(gateway, key=key) == roles

    await eventually(usable, what=f"{roles} can be asked", deadline_s=60)


def environment(served: tuple[Served, ...], urls: list[str]) -> dict[str, str]:
    """Return what tells a program where to ask for what.

    llama-server does not mind what its model is called.
    """
    chat, embeddings, endless = served
    return {
        "CLIENT_URL": urls[0],
        "CLIENT_KEY": KEY,
        "CLIENT_MODEL": chat.role,
        "CLIENT_EMBEDDINGS_URL": urls[1],
        "CLIENT_EMBEDDINGS_MODEL": embeddings.role,
        "CLIENT_ENDLESS_URL": urls[2],
        "CLIENT_ENDLESS_MODEL": endless.role,
    }


async def results(clients: Clients, program: str, target: Mapping[str, str]) -> dict[str, Any]:
    """Run one of the programs and return what it found, by the names of its checks."""
    command: Command = [clients.python, "-m", f"tests.integration.clients.{program}"]
    if program == "openai_node":
        command = [clients.node, REPOSITORY / "tests/integration/clients/openai_node.cjs"]
    paths = {
        "PYTHONPATH": str(REPOSITORY),
        "NODE_PATH": str(clients.modules / "node_modules"),
    }
    done = await run_to_end(command, environment={**paths, **target}, deadline_s=120)
    assert done.status == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def differences(ours: Any, theirs: Any, place: str = "") -> Iterator[str]:
    """Yield where two results differ; ids and times are alike if they are of one kind."""
    if place.rpartition(".")[2] in VARYING and type(ours) is type(theirs):
        return
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in {**ours, **theirs}:
            yield from differences(ours.get(key, ...), theirs.get(key, ...), f"{place}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for position, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(*pair, f"{place}[{position}]")
    elif not alike(ours, theirs):
        yield f"{place}: {ours!r} is not {theirs!r}"


def alike(ours: Any, theirs: Any) -> bool:
    """Tell whether two plain values are the same, numbers to three decimals."""
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, abs_tol=1e-3)
    return bool(ours == theirs)


def raised(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return which checks ended with an error, and the classes of those."""
    return {
        name: result["raised"]
        for name, result in found.items()
        if isinstance(result, dict) and "raised" in result
    }


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_client_gets_what_llama_server_gives(
    program: str,
    clients: Clients,
    served: tuple[Served, ...],
    direct: Mapping[str, str],
    through_gateway: Mapping[str, str],
) -> None:
    itself = await results(clients, program, direct)
    by_us = await results(clients, program, through_gateway)

    not_found, tool_loop = PROGRAMS[program]
    itself.pop("models", None)
    roles = sorted(model.role for model in served)
    assert by_us.pop("models", roles) == roles

    # llama-server answers whatever model it is asked for.
    itself.pop("unknown_model")
    unknown = by_us.pop("unknown_model")
    assert (unknown["raised"], unknown["status"]) == (not_found, 404)
    assert "nobody" in unknown["message"]

    # The words of an error about a key are ours.
    refused, refused_by_us = itself.pop("wrong_key"), by_us.pop("wrong_key")
    assert (refused_by_us["raised"], refused_by_us["status"]) == (refused["raised"], 401)

    assert list(differences(by_us, itself)) == []
    for said in ("get_weather", "Paris", "Rome", SAYS):
        assert said in json.dumps(by_us[tool_loop])
    expected = {name: kind for name, kind in FAILS_DIRECTLY.items() if name in by_us}
    assert raised(by_us) == expected


def recipes() -> list[tuple[str, str]]:
    """Return the programs of docs/clients.md: language and text."""
    page = (REPOSITORY / "docs" / "clients.md").read_text()
    return re.findall(r"^```(python|javascript)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


async def test_every_program_in_the_documentation_runs(
    clients: Clients,
    start_gateway: StartDaemon,
    start_agent: StartDaemon,
    weather_model: Path,
    tmp_path: Path,
) -> None:
    gateway = await start_gateway(
        {"auth": {"client_api_keys": ["demo-key"]}, "aliases": {"from_roles": True}}
    )
    entry = model_entry(weather_model, "weather-1", "planner", "coder", context_size=CONTEXT)
    entry["args"] = [*ONE_THREAD]
    configuration = {"models": [entry], "instances": {"cpu0": {"model": "weather-1"}}}
    await start_agent("box", configuration, gateway)
    await all_usable(gateway, "demo-key", {"planner", "coder"})
    # Node.js looks for modules beside a program.
    (tmp_path / "node_modules").symlink_to(clients.modules / "node_modules")
    runners = {"python": (clients.python, ".py"), "javascript": (clients.node, ".mjs")}
    assert {language for language, _ in recipes()} == set(runners)
    for language, text in recipes():
        interpreter, ending = runners[language]
        program = tmp_path / f"recipe{ending}"
        program.write_text(text.replace("http://127.0.0.1:8000", gateway.url))
        done = await run_to_end([interpreter, program], deadline_s=60)
        assert (done.status, SAYS in done.stdout) == (0, True), f"{text}\n{done}"
