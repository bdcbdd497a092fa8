"""An upgrade from the version before, on hosts that serve: nobody notices."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest

import rolemesh
from tests.lab.host import Host
from tests.lab.hosts import Lab
from tests.lab.poll import eventually_sync
from tests.system.conftest import Layers
from tests.system.hammer import Hammered, hammering
from tests.system.mesh import (
    AGENT,
    AGENT_PORT,
    GATEWAY_PORT,
    GATEWAY_UNIT,
    Mesh,
    Reply,
    drop_in,
    llama_servers,
    start_mesh,
)
from tests.system.steady_stream import ALIAS, Streamed, read_stream, steady_server

INSTANCES = {"gpu0", "gpu1", "cpu0"}
MOST_PATIENCE_S = 0.5
SAYS = "the code of the coder"


@pytest.fixture(scope="module", params=["trixie", "bookworm", "forky"])
def suite(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def mesh(
    lab: Lab,
    suite: str,
    unpacked_root: Callable[[str], Layers],
    binds: Mapping[str, Path],
    earlier: Path,
) -> Mesh:
    """Return a gateway and a node of the earlier version, which serve."""
    seen = {**binds, "/srv/earlier": earlier}
    gateway, node = lab.boot(["gw", "box"], root=unpacked_root(suite), binds=seen)
    install(gateway, "/srv/earlier")
    install(node, "/srv/earlier")
    mesh = start_mesh(lab, gateway, node)
    for role in ("planner", "coder", "poet"):
        mesh.wait_until_usable(role)
        assert mesh.chat(role, max_tokens=8).status == 200
    return mesh


def install(host: Host, folder: str) -> str:
    """Install packages over whatever is there; return what apt-get says."""
    script = f"apt-get install -y --reinstall --allow-downgrades {folder}/*.deb 2>&1"
    return host.run("sh", "-c", script).stdout


@dataclass(kw_only=True)
class Upgrade:
    """What was seen of the gateway's upgrade."""

    pids: tuple[str, str]  # of the gateway, before and after
    over_s: float  # on the monotonic clock
    hammered: Hammered
    chats: list[tuple[Reply, float]]  # each with the seconds it took
    streamed: Streamed


@pytest.fixture(scope="module")
def upgrade(mesh: Mesh) -> Upgrade:
    """Upgrade the gateway while clients connect, chat, and one reads a stream."""
    before = main_pid(mesh.gateway, GATEWAY_UNIT)
    over, stream = Event(), Streamed()
    clients = hammering(mesh.lab, mesh.gateway, GATEWAY_PORT)
    with steady_server(mesh.lab.network, over) as url, ThreadPoolExecutor(2) as pool:
        drop_in(mesh.gateway, "gateway", "60-steady.yaml", steady_alias(url))
        mesh.gateway.run("systemctl", "reload", GATEWAY_UNIT)
        mesh.wait_until_usable(ALIAS)
        streaming = pool.submit(read_stream, mesh, ALIAS, stream)
        chatting = pool.submit(lambda: list(chats(mesh, over)))
        try:
            with clients as hammered:
                hammered.wait_for_more()
                install(mesh.gateway, "/srv/packages")
                over_s = time.monotonic()
                hammered.wait_for_more()
        finally:
            over.set()
        streaming.result()
    return Upgrade(
        pids=(before, main_pid(mesh.gateway, GATEWAY_UNIT)),
        over_s=over_s,
        hammered=hammered,
        chats=chatting.result(),
        streamed=stream,
    )


def steady_alias(url: str) -> dict[str, Any]:
    return {"models": {ALIAS: {"type": "proxy", "proxy_url": url}}}


def main_pid(host: Host, unit: str) -> str:
    return host.show(unit, "MainPID")


def chats(mesh: Mesh, over: Event) -> Iterator[tuple[Reply, float]]:
    """Chat again and again."""
    while not over.is_set():
        began = time.monotonic()
        yield mesh.chat(ALIAS), time.monotonic() - began


def versions(mesh: Mesh) -> dict[str, str]:
    """Return the version that each kind of program runs in."""
    said = mesh.gateway.run("rolemeshctl", "status", "--versions", "--json").stdout
    return {part["part"]: part["runs"] for part in json.loads(said)["parts"]}


def test_the_new_gateway_takes_over_from_the_old_one(mesh: Mesh, upgrade: Upgrade) -> None:
    before, after = upgrade.pids
    assert after != before
    assert mesh.gateway.show(GATEWAY_UNIT, "ActiveState") == "active"
    assert mesh.gateway.show(GATEWAY_UNIT, "NRestarts") == "0"
    assert mesh.gateway.show(AGENT, "UnitFileState") == "disabled"
    assert mesh.gateway.show(AGENT, "ActiveState") == "inactive"
    assert versions(mesh)["rolemesh-gateway"] == rolemesh.__version__


def test_a_stream_that_runs_meanwhile_is_completed(upgrade: Upgrade) -> None:
    assert upgrade.streamed.ended_s > upgrade.over_s
    assert upgrade.streamed.last == b"data: [DONE]"
    assert upgrade.streamed.longest_gap_s <= MOST_PATIENCE_S


def test_nobody_else_is_refused_or_waits(upgrade: Upgrade) -> None:
    hammered = upgrade.hammered
    assert (hammered.refused, hammered.broken, hammered.surprises) == (0, 0, [])
    assert hammered.longest_s <= MOST_PATIENCE_S
    assert {reply.status for reply, _ in upgrade.chats} == {200}
    assert max(took_s for _, took_s in upgrade.chats) <= MOST_PATIENCE_S


def test_the_new_gateway_uses_the_earlier_agent(mesh: Mesh, upgrade: Upgrade) -> None:
    assert mesh.chat("coder").says == SAYS


def test_the_agents_upgrade_leaves_every_llama_server_alone(mesh: Mesh, upgrade: Upgrade) -> None:
    before, agent = llama_servers(mesh.node), main_pid(mesh.node, AGENT)
    assert len(before) == len(INSTANCES)
    stream = Streamed()
    clients = hammering(mesh.lab, mesh.node, AGENT_PORT)
    with ThreadPoolExecutor(1) as pool, clients as hammered:
        streaming = pool.submit(read_stream, mesh, "poet", stream)
        try:
            eventually_sync(lambda: stream.events, what="the stream has begun")
            install(mesh.node, "/srv/packages")
            until_now = stream.events
            eventually_sync(lambda: stream.events > until_now + 10, what="the stream goes on")
        finally:
            stream.enough.set()
        streaming.result()
        hammered.wait_for_more()
    assert (hammered.refused, hammered.broken, hammered.surprises) == (0, 0, [])
    assert main_pid(mesh.node, AGENT) != agent
    assert llama_servers(mesh.node) == before
    mesh.wait_until_usable("coder")
    assert mesh.chat("coder").says == SAYS
    assert versions(mesh)["rolemesh-node-agent"] == rolemesh.__version__
    assert llama_servers(mesh.node) == before


def test_where_the_new_gateway_does_not_come_up_the_old_one_serves_on(
    mesh: Mesh, upgrade: Upgrade
) -> None:
    host = mesh.gateway
    before = main_pid(host, GATEWAY_UNIT)
    bad = drop_in(host, "gateway", "90-bad.yaml", "lisen: {}\n")
    said = install(host, "/srv/packages")
    assert "the one from before the upgrade serves on" in said
    assert f"{bad}:1: lisen: unknown key" in host.journal_text(f"--unit={GATEWAY_UNIT}")
    assert main_pid(host, GATEWAY_UNIT) == before
    assert mesh.chat("coder").says == SAYS
    host.run("rm", bad)
    host.run("systemctl", "reload", GATEWAY_UNIT)
    assert main_pid(host, GATEWAY_UNIT) != before
