"""Dropping a file adds; a reload takes it in, or refuses it whole and serves on as before."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import StartDaemon, model
from tests.lab.mesh import Daemon, get_json, post_json, usable_models
from tests.lab.poll import eventually

CHAT = {"messages": [{"role": "user", "content": "go"}]}


def gateway_drop_in(alias: str, key: str) -> str:
    """Return a drop-in that brings one alias and one key."""
    return (
        f"auth: {{client_api_keys: [{key}]}}\n"
        f"models: {{{alias}: {{type: discovered, role: {alias}}}}}\n"
    )


async def ask(gateway: Daemon, alias: str, key: str) -> tuple[int, str]:
    """Return the status of a chat, and what was said."""
    url = f"{gateway.url}/v1/chat/completions"
    status, reply = await post_json(url, {"model": alias, **CHAT}, key=key)
    if status != 200:
        return status, str(reply["error"]["code"])
    return status, str(reply["choices"][0]["message"]["content"])


@pytest.fixture
async def mesh(
    start_gateway: StartDaemon, start_agent: StartDaemon, make_model: Callable[..., Path]
) -> Daemon:
    """Start a gateway whose first alias and key come in one drop-in, and a node with two roles."""
    gateway = await start_gateway({"auth": {"client_api_keys": ["key-one"]}})
    gateway.drop_in("60-one.yaml", gateway_drop_in("one", "key-one"))
    models = [
        model(make_model(f"says-{role}", says=f"I am {role}"), f"{role}-gguf", role)
        for role in ("one", "two")
    ]
    await start_agent(
        "box",
        {"models": models, "instances": {"cpu0": {}, "cpu1": {}}},
        gateway,
    )
    gateway.program.send(signal.SIGHUP)
    await eventually(lambda: usable_models(gateway, key="key-one"), what="one usable")
    return gateway


async def test_two_drop_ins_with_a_model_and_a_key_each_are_two_models_and_two_keys(
    mesh: Daemon,
) -> None:
    assert await ask(mesh, "two", "key-one") == (404, "model_not_found")
    assert await ask(mesh, "one", "key-two") == (401, "invalid_api_key")

    mesh.drop_in("70-two.yaml", gateway_drop_in("two", "key-two"))
    mesh.program.send(signal.SIGHUP)
    await mesh.program.line(r"reloaded: .*2/2 aliases")

    assert await usable_models(mesh, key="key-two") == {"one", "two"}
    for alias in ("one", "two"):
        for key in ("key-one", "key-two"):
            assert await ask(mesh, alias, key) == (200, f"I am {alias}")


async def test_a_bad_reload_is_refused_with_file_and_line_and_the_old_configuration_serves(
    mesh: Daemon,
) -> None:
    bad = mesh.drop_in(
        "80-bad.yaml", "models:\n  two: {type: discovered}\n  three: {type: discovered, rol: two}\n"
    )
    mesh.program.send(signal.SIGHUP)

    await mesh.program.line(r"reload refused, the old configuration stays in force")
    await mesh.program.line(rf"{bad}:3: models\.three\.rol: unknown key.*role")
    assert await ask(mesh, "one", "key-one") == (200, "I am one")
    assert await ask(mesh, "two", "key-one") == (404, "model_not_found")  # nothing of it counts

    bad.unlink()
    mesh.program.send(signal.SIGHUP)
    await mesh.program.line(r"reloaded: ")


async def test_a_reload_of_the_agent_adds_a_model_and_leaves_the_others_loaded(
    start_agent: StartDaemon, make_model: Callable[..., Path]
) -> None:
    first = model(make_model("says-one", says="I am one"), "one-gguf", "one")
    second = model(make_model("says-two", says="I am two"), "two-gguf", "two")
    instances = {"cpu0": {"model": "one-gguf"}, "cpu1": {}}
    agent = await start_agent("box", {"models": [first], "instances": instances})
    assert await ask(agent, "one-gguf", "any") == (200, "I am one")
    _, before = await get_json(f"{agent.url}/v1/node")

    agent.drop_in("60-two.yaml", {"models": [second]})
    agent.program.send(signal.SIGHUP)
    await agent.program.line(r"reloaded: ")

    assert await ask(agent, "two-gguf", "any") == (200, "I am two")
    _, after = await get_json(f"{agent.url}/v1/node")
    assert after["instances"][0]["pid"] == before["instances"][0]["pid"]
