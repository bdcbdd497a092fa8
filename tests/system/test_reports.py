"""What nodes report: soon after a change, to every gateway, whatever the clocks do."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.lab.clock import LIBRARY, StepClock
from tests.lab.host import Host
from tests.lab.hosts import Lab
from tests.lab.poll import eventually_sync
from tests.system.conftest import InstalledRoot
from tests.system.mesh import (
    AGENT,
    GATEWAY_PORT,
    GATEWAY_UNIT,
    NODE_KEY,
    Mesh,
    drop_in,
    model,
    node_basics,
    start_agent,
    start_gateway,
)

CLOCK = Path("/srv/clock")
DAY_S = 86400
SHORT_STALE_S = 3
LONG_STALE_S = 300  # beats are then a minute apart or more
BEATS = 4


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> StepClock:
    """Return the clock of gateways and agents."""
    folder = tmp_path_factory.mktemp("clock")
    folder.chmod(0o755)
    return StepClock(folder, seen_at=CLOCK)


@pytest.fixture(scope="module")
def mesh(
    lab: Lab, installed_root: InstalledRoot, binds: Mapping[str, Path], clock: StepClock
) -> Mesh:
    """Return a node without a GPU that reports to two gateways, the first of them the mesh's."""
    seen = {**binds, str(CLOCK): clock.folder}
    gateway, other = lab.boot(["gw", "gw2"], root=installed_root("trixie"), binds=seen)
    (node,) = lab.boot(["box"], root=installed_root("trixie"), binds=seen)
    words = " ".join(f"{name}={value}" for name, value in clock.environment.items())
    for unit in (GATEWAY_UNIT, AGENT):
        for host in (gateway, other, node):
            stepped = f"[Service]\nEnvironment={words}\n"
            host.put(f"/etc/systemd/system/{unit}.d/clock.conf", stepped)
    for each in (gateway, other):
        start_gateway(each)
    both = [
        {"url": f"http://{each.name}:{GATEWAY_PORT}", "api_key": NODE_KEY}
        for each in (gateway, other)
    ]
    basics = {**node_basics(gateway), "gateways": both}
    start_agent(node, {**basics, "models": [model("coder", says="the code of the coder")]})
    mesh = Mesh(lab=lab, gateway=gateway, node=node)
    mesh.wait_until_usable("coder")
    return mesh


def set_stale_after(host: Host, seconds: float) -> None:
    """Have a gateway ask for beats a quarter as far apart, and forget all it was told before."""
    drop_in(host, "gateway", "60-stale.yaml", {"nodes": {"stale_after_s": seconds}})
    host.run("systemctl", "stop", GATEWAY_UNIT)
    host.run("sh", "-c", "rm -r /var/lib/rolemesh/gateway/*")
    host.run("systemctl", "start", GATEWAY_UNIT)


def node_of(host: Host) -> dict[str, Any]:
    """Return what a gateway says of its only node; {} while it has none."""
    nodes = json.loads(host.run("rolemeshctl", "nodes", "--json").stdout)["nodes"]
    return dict(nodes[0]) if nodes else {}


def wait_until_live(host: Host) -> None:
    eventually_sync(lambda: node_of(host).get("state") == "live", what="live", deadline_s=30)


def test_a_gateway_that_lost_its_state_learns_everything_anew(mesh: Mesh) -> None:
    set_stale_after(mesh.gateway, SHORT_STALE_S)
    wait_until_live(mesh.gateway)
    assert mesh.chat("coder").says == "the code of the coder"


def test_each_gateway_serves_while_the_other_is_away(mesh: Mesh) -> None:
    other = mesh.lab.hosts[1]
    mesh.gateway.pull_cable()
    try:
        alone = Mesh(lab=mesh.lab, gateway=other, node=mesh.node)
        assert alone.chat("coder").says == "the code of the coder"
    finally:
        mesh.gateway.plug_cable()
    wait_until_live(mesh.gateway)
    assert mesh.chat("coder").says == "the code of the coder"


def test_a_step_of_the_clock_makes_no_node_stale(mesh: Mesh, clock: StepClock) -> None:
    set_stale_after(mesh.gateway, SHORT_STALE_S)
    wait_until_live(mesh.gateway)
    began = mesh.gateway.run("journalctl", "--show-cursor", "--lines=0").stdout.split()[-1]
    for seconds in (DAY_S, -DAY_S, 0):
        clock.step(seconds)
        assert is_stepped(mesh, clock, seconds)
        pass_beats(mesh, BEATS)
        assert mesh.chat("coder").says == "the code of the coder"
    seen = mesh.gateway.run("journalctl", f"--after-cursor={began}", f"--unit={GATEWAY_UNIT}")
    assert "stale" not in seen.stdout
    assert "lost" not in seen.stdout


def is_stepped(mesh: Mesh, clock: StepClock, seconds: int) -> bool:
    """Tell whether gateway and agent have a time of day that is so far from the real one."""
    for host, unit in ((mesh.gateway, GATEWAY_UNIT), (mesh.node, AGENT)):
        assert LIBRARY in host.run("cat", f"/proc/{host.show(unit, 'MainPID')}/maps").stdout
    variables = (f"{name}={value}" for name, value in clock.environment.items())
    told = mesh.gateway.run("env", *variables, "python3", "-c", "import time; print(time.time())")
    real = mesh.gateway.run("date", "+%s").stdout
    return abs(float(told.stdout) - int(real) - seconds) < 60


def pass_beats(mesh: Mesh, beats: int) -> None:
    """Wait for some more heartbeats; at each look the node is live."""
    before_s = 0.0
    while beats:
        node = node_of(mesh.gateway)
        assert node["state"] == "live"
        beats -= node["heard_s_ago"] < before_s
        before_s = node["heard_s_ago"]


def test_a_change_is_told_long_before_the_next_beat(mesh: Mesh) -> None:
    set_stale_after(mesh.gateway, LONG_STALE_S)
    wait_until_live(mesh.gateway)
    for verb, state in (("unload", "cold"), ("load", "ready"), ("unload", "cold")):
        mesh.ask_node("POST", f"/v1/node/models/coder-gguf/{verb}", {})

        def told(state: str = state) -> bool:
            return bool(node_of(mesh.gateway)["models"][0]["state"] == state)

        eventually_sync(told, what=f"the gateway knows that it is {state}", deadline_s=15)
