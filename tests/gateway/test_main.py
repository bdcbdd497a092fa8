"""The gateway as a whole: reload, what survives a restart, and how it stops."""

import asyncio
import json
import re
import signal
import socket
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rolemesh.errors import StartError
from tests.fakes.client import connected
from tests.fakes.upstream import Conversation, answers, sends_and_hangs, upstream
from tests.gateway.conftest import StartGateway, StartUpstream
from tests.gateway.harness import DISCOVERED, asking, running_gateway
from tests.lab.poll import eventually
from tests.lab.processes import free_port

OK = answers(b"{}")
CODER = {"models": {"coder": DISCOVERED}}


# --- reload -----------------------------------------------------------------------------------


async def test_a_reload_changes_aliases_keys_and_limits_while_requests_go_on(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    release = asyncio.Event()

    async def held(conversation: Conversation) -> None:
        await release.wait()
        await OK(conversation)

    up = await start_upstream(held)
    proxy = {"type": "proxy", "proxy_url": up.url}
    gateway = await start_gateway(models={"planner": proxy})
    async with asking(gateway, "planner") as client:
        await eventually(lambda: up.conversations, what="it is asked")
        await gateway.reload(
            {
                "models": {"critic": proxy},
                "auth": {"client_api_keys": ["key"]},
                "limits": {"max_body_bytes": 1024},
                "nodes": {"stale_after_s": 7},
            }
        )
        release.set()
        assert (await client.reply()).status == 200
    assert (await gateway.chat("critic")).status == 401
    assert (await gateway.chat("critic", "X-Api-Key: key")).status == 200
    assert (await gateway.chat("planner", "X-Api-Key: key")).status == 404
    assert (await gateway.chat("critic", "X-Api-Key: key", x="a" * 2000)).status == 413
    assert gateway.registry.stale_after_s == 7


async def test_a_request_whose_alias_is_taken_away_leaves_the_queue(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(sends_and_hangs())
    planner = {"type": "proxy", "proxy_url": up.url, "max_in_flight": 1}
    gateway = await start_gateway(models={"planner": planner})
    async with asking(gateway, "planner"), asking(gateway, "planner") as waiting:
        await eventually(lambda: gateway.queued("planner") == 1, what="one waits")
        await gateway.reload({"models": {}})
        assert (await waiting.reply()).status == 404


async def test_a_refused_reload_leaves_everything_as_it_was(
    start_gateway: StartGateway, start_upstream: StartUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start_gateway()
    await gateway.register("box", await start_upstream(OK))
    gateway.hang_up({"models": {"coder": {"type": "nonsense"}}})
    await eventually(lambda: "reload refused" in caplog.text, what="it is said")
    assert (await gateway.chat()).status == 200


async def test_another_address_is_listened_on_at_once_and_the_old_one_no_more(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    port = free_port()
    await gateway.reload({**CODER, "listen": {"port": port}})
    await eventually(lambda: refuses(gateway.port), what="the old address is closed")
    assert (await replace(gateway, port=port).get("/health")).status == 200
    assert gateway.lifecycle.status().startswith(f"listening on 127.0.0.1:{port}; ")


async def test_an_address_that_cannot_be_had_refuses_the_whole_reload(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start_gateway()
    with socket.create_server(("127.0.0.1", 0)) as other:
        gateway.hang_up({"models": {}, "listen": {"port": other.getsockname()[1]}})
        await eventually(lambda: "another program has it" in caplog.text, what="it is said")
    assert "reload refused" in caplog.text
    assert (await gateway.chat()).status == 503  # and not 404: the alias is still there


# --- nodes over time --------------------------------------------------------------------------


async def test_a_silent_node_is_out_of_routing_and_the_reason_says_since_when(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway(nodes={"stale_after_s": 0.2})
    await gateway.register("box", await start_upstream(OK))
    assert (await gateway.chat()).status == 200
    await eventually(lambda: gateway.node_state("box") == "late", what="it is late")
    reply = await gateway.chat()
    assert reply.status == 503
    assert re.fullmatch(r"box: stale: not heard for \d+ s", reply.error["reason"])


@pytest.mark.parametrize("node_is_there", [True, False])
async def test_nodes_survive_a_restart_and_are_asked_before_they_are_used(
    tmp_path: Path, node_is_there: bool
) -> None:
    async with upstream(OK) as up:
        async with running_gateway(tmp_path, CODER) as first:
            await first.register("box", up)
        saved = json.loads((tmp_path / "registry.json").read_text())
        assert [node["node_id"] for node in saved["nodes"]] == ["box"]
        assert (tmp_path / "registry.json").stat().st_mode & 0o777 == 0o600  # it holds keys
        if not node_is_there:
            up.probe = sends_and_hangs()
        async with running_gateway(tmp_path, CODER) as second:
            if node_is_there:
                await eventually(lambda: second.node_state("box") == "live", what="it answers")
            assert second.node_state("box") == ("live" if node_is_there else "restored")
            assert (await second.chat()).status == (200 if node_is_there else 503)
            # Its registration may be out of date, whether it is there or not.
            assert (await second.post("/v1/nodes/box/heartbeat", {})).status == 404


async def test_a_state_file_that_cannot_be_understood_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "registry.json").write_text("[" * 100_000)
    async with running_gateway(tmp_path, CODER) as gateway:
        assert (await gateway.get("/health")).status == 200
    assert (tmp_path / "registry.json.corrupt").exists()


# --- status and stop --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configuration", "says"),
    [
        ({"models": {}}, "no alias is configured and no node has registered"),
        (CODER, "0/1 aliases usable; 0/0 nodes live"),
    ],
)
async def test_the_status_says_what_there_is(
    start_gateway: StartGateway, configuration: dict[str, Any], says: str
) -> None:
    gateway = await start_gateway(**configuration)
    status = gateway.lifecycle.status()
    assert status.startswith(f"listening on 127.0.0.1:{gateway.port}; ")
    assert says in status


async def test_the_status_follows_nodes_and_says_what_is_not_saved(
    start_gateway: StartGateway, start_upstream: StartUpstream, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    (tmp_path / "registry.json").mkdir()
    await gateway.register("box", await start_upstream(OK))
    assert "1/1 aliases usable; 1/1 nodes live" in gateway.lifecycle.status()
    await eventually(
        lambda: "registry.json not saved since" in gateway.lifecycle.status(), what="it is said"
    )
    assert (await gateway.chat()).status == 200


async def test_a_stop_lets_a_request_finish_but_accepts_no_other(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def held(conversation: Conversation) -> None:
        await release.wait()
        await OK(conversation)

    async with upstream(held) as up, AsyncExitStack() as gateway_life, AsyncExitStack() as asked:
        planner = {"planner": {"type": "proxy", "proxy_url": up.url}}
        configuration = {"models": planner, "limits": {"drain_s": 30}}
        gateway = await gateway_life.enter_async_context(running_gateway(tmp_path, configuration))
        client = await asked.enter_async_context(asking(gateway, "planner"))
        await eventually(lambda: up.conversations, what="it is asked")
        gateway.lifecycle._signals.put_nowait(signal.SIGTERM)

        await eventually(lambda: refuses(gateway.port), what="nobody is accepted")
        release.set()
        reply = await client.reply()
        assert (reply.status, reply.fields["connection"]) == (200, "close")
        assert await client.rest() == b""


async def refuses(port: int) -> bool:
    try:
        async with connected(port):
            return False
    except ConnectionError:
        return True


async def test_a_start_that_fails_binds_nothing_and_says_why(
    tmp_path: Path, start_gateway: StartGateway
) -> None:
    first = await start_gateway()
    with pytest.raises(ExceptionGroup) as failed:
        async with running_gateway(tmp_path, CODER, port=first.port):
            await asyncio.Event().wait()
    assert failed.group_contains(StartError, match="another program has it")
