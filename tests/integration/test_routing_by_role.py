"""One address, several machines: each role is answered by the weights that have it."""

from collections.abc import Callable
from pathlib import Path

from openai import AsyncOpenAI

from tests.integration.conftest import StartDaemon, model
from tests.lab.mesh import Daemon, usable_models
from tests.lab.poll import eventually

KEY = "sk-test"
PLANNER_SAYS = "First think , then act ."
CODER_SAYS = "def main ( ) : pass"


async def two_agents(
    start_gateway: StartDaemon, start_agent: StartDaemon, make_model: Callable[..., Path]
) -> Daemon:
    """Start a gateway and two agents, one role each; return the gateway once both answer."""
    gateway = await start_gateway(
        {
            "auth": {"client_api_keys": [KEY]},
            "models": {
                "planner": {"type": "discovered"},
                "programmer": {"type": "discovered", "role": "coder"},
            },
        }
    )
    planner = model(make_model("planner", says=PLANNER_SAYS), "planner-gguf", "planner")
    coder = model(make_model("coder", says=CODER_SAYS), "coder-gguf", "coder")
    for node_id, entry in (("left", planner), ("right", coder)):
        await start_agent(node_id, {"models": [entry], "instances": {"cpu0": {}}}, gateway)
    await eventually(
        lambda: all_usable(gateway, {"planner", "programmer"}), what="both aliases usable"
    )
    return gateway


async def all_usable(gateway: Daemon, aliases: set[str]) -> bool:
    """Tell whether the gateway lists these aliases."""
    return aliases <= await usable_models(gateway, key=KEY)


async def test_each_role_is_answered_by_the_node_that_has_it(
    start_gateway: StartDaemon, start_agent: StartDaemon, make_model: Callable[..., Path]
) -> None:
    gateway = await two_agents(start_gateway, start_agent, make_model)
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        listed = {entry.id async for entry in client.models.list()}
        plain = await client.chat.completions.with_raw_response.create(
            model="programmer",
            messages=[{"role": "user", "content": "go"}],
        )
        stream = await client.chat.completions.create(
            model="planner",
            messages=[{"role": "user", "content": "go"}],
            stream=True,
        )
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]

    assert listed == {"planner", "programmer"}
    assert plain.parse().choices[0].message.content == CODER_SAYS
    assert plain.headers["X-RoleMesh-Node"] == "right"
    assert plain.headers["X-RoleMesh-Model"] == "coder-gguf"
    assert "".join(pieces).split() == PLANNER_SAYS.split()
    assert len(pieces) > len(PLANNER_SAYS.split())  # it came in pieces, not at the end


async def test_a_request_id_is_in_the_reply_and_in_the_log_of_every_daemon_it_crossed(
    start_gateway: StartDaemon, start_agent: StartDaemon, make_model: Callable[..., Path]
) -> None:
    gateway = await start_gateway({"aliases": {"from_roles": True}})
    coder = model(make_model("coder", says=CODER_SAYS), "coder-gguf", "coder")
    agent = await start_agent("box", {"models": [coder], "instances": {"cpu0": {}}}, gateway)
    await eventually(lambda: usable_models(gateway), what="coder usable")

    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as client:
        reply = await client.chat.completions.with_raw_response.create(
            model="coder",
            messages=[{"role": "user", "content": "a secret prompt"}],
            extra_headers={"X-Request-Id": "case-4711"},
        )

    assert reply.headers["X-Request-Id"] == "case-4711"
    for daemon in (gateway, agent):
        await daemon.program.line(r"request_id=case-4711 .*status=200")
        assert not any("secret prompt" in line for line in daemon.program.lines())
