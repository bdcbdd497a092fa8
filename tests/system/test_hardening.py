"""How little the services may do, and that they do all of their work with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.host import Host
from tests.system.mesh import (
    AGENT,
    AGENT_PORT,
    GATEWAY_PORT,
    GATEWAY_UNIT,
    Mesh,
    llama_server_of,
    llama_unit,
)

CPU, GPU = llama_unit("cpu0"), llama_unit("gpu0")
MOST_EXPOSURE = {GATEWAY_UNIT: 1.1, AGENT: 1.4, GPU: 0.5, CPU: 0.3}

# Prints the directories that a user may write and where a program that it puts there runs.
RUN_WHAT_I_WROTE = """\
find / \\( -path /proc -o -path /sys \\) -prune -o -type d -writable -print 2>/dev/null |
while read -r folder; do
    echo "writable $folder"
    cp /usr/bin/true "$folder/.try" 2>/dev/null || continue
    chmod 700 "$folder/.try"
    "$folder/.try" 2>/dev/null && echo "runs $folder"
    rm -f "$folder/.try"
done
"""

EXAMPLE = Path(__file__).parents[2] / "etc" / "examples" / "systemd" / "network.conf"
EXAMPLE_NETWORK = "192.0.2.0/24"
NO_BPF = "BPF is not permitted to hosts here: systemd holds no unit to a list of addresses"
CONNECT_S = 2.0
# Whether a unit that may speak with nobody is let through: in a container, systemd says nothing.
HELD = ("systemd-run", "--quiet", "--wait", "--property=IPAddressDeny=any", "python3", "-c")
CONNECT = "import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1)"
ASK = """\
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=20) as reply:
    print(reply.status)
"""


@pytest.fixture(scope="module", params=["trixie", "bookworm", "forky"])
def suite(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A daemon, and the host that it has to do with."""

    unit: str
    port: int
    host: Host
    peer: Host


@pytest.fixture(params=[GATEWAY_UNIT, AGENT])
def daemon(request: pytest.FixtureRequest, mesh: Mesh) -> Daemon:
    if request.param == AGENT:
        return Daemon(unit=AGENT, port=AGENT_PORT, host=mesh.node, peer=mesh.gateway)
    return Daemon(unit=GATEWAY_UNIT, port=GATEWAY_PORT, host=mesh.gateway, peer=mesh.node)


def host_of(mesh: Mesh, unit: str) -> Host:
    return mesh.gateway if unit == GATEWAY_UNIT else mesh.node


def start_instance(mesh: Mesh, instance: str) -> None:
    mesh.node.run("systemctl", "start", llama_unit(instance))
    mesh.wait_for_state(instance, "ready")


@pytest.mark.parametrize("unit", MOST_EXPOSURE)
def test_little_of_the_host_is_exposed(mesh: Mesh, unit: str) -> None:
    said = host_of(mesh, unit).run("systemd-analyze", "security", "--no-pager", unit).stdout
    exposure = float(said.partition("exposure level for")[2].split()[1])
    assert exposure <= MOST_EXPOSURE[unit], said


def test_nobody_has_a_capability_or_gets_one(mesh: Mesh) -> None:
    start_instance(mesh, "gpu0")
    start_instance(mesh, "cpu0")
    mains = [
        (host_of(mesh, unit), int(host_of(mesh, unit).show(unit, "MainPID")))
        for unit in MOST_EXPOSURE
    ]
    servers = [(mesh.node, llama_server_of(mesh.node, each)) for each in ("gpu0", "cpu0")]
    for host, pid in [*mains, *servers]:
        fields = dict(
            line.split(":", 1)
            for line in host.run("cat", f"/proc/{pid}/status").stdout.splitlines()
        )
        sets = {fields[f"Cap{kind}"].strip() for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
        assert sets == {"0" * 16}, fields["Name"]
        assert fields["NoNewPrivs"].strip() == "1"
        assert fields["Seccomp"].strip() == "2"


@pytest.mark.parametrize("unit", MOST_EXPOSURE)
def test_a_service_cannot_execute_what_it_can_write(mesh: Mesh, unit: str) -> None:
    host = host_of(mesh, unit)
    host.run("systemctl", "start", unit)
    pid, user = host.show(unit, "MainPID"), host.show(unit, "User")
    script = ("runuser", "-u", user, "--", "sh", "-c", RUN_WHAT_I_WROTE)
    lines = host.run("nsenter", "-t", pid, "-m", *script).stdout.splitlines()
    assert [line for line in lines if line.startswith("runs ")] == []
    folders = {line.removeprefix("writable ") for line in lines}
    own = host.show(unit, "RuntimeDirectory") or "rolemesh/node"
    assert f"/run/{own}" in folders, "the script has seen nothing"
    assert not [each for each in folders if each.startswith(("/usr", "/etc", "/srv", "/opt"))]


def test_an_instance_without_a_gpu_has_no_devices_and_answers(mesh: Mesh) -> None:
    start_instance(mesh, "cpu0")
    assert mesh.chat("poet", max_tokens=3).says == "on and on"
    pid = llama_server_of(mesh.node, "cpu0")
    command = ("nsenter", "-t", str(pid), "-m", "ls", "/dev")
    devices = set(mesh.node.run(*command).stdout.split())
    assert "null" in devices
    assert not devices & {"dri", "kfd", "net", "fuse", "console"}
    assert mesh.node.show(CPU, "MemoryDenyWriteExecute") == "yes"
    assert mesh.node.show(CPU, "SupplementaryGroups") == ""
    assert mesh.node.show(GPU, "MemoryDenyWriteExecute") == "no"


def restart_for_good(host: Host, unit: str) -> None:
    """Stop and start: a restart would keep the listening sockets, and with them their lists."""
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "stop", unit)
    host.run("systemctl", "start", unit)


@pytest.fixture
def defined_network(daemon: Daemon) -> Iterator[Daemon]:
    """Let a daemon speak with its peer and its own host only, as the example says."""
    if daemon.host.run(*HELD, CONNECT.format(port=daemon.port), check=False).returncode == 0:
        pytest.skip(NO_BPF)
    drop_in = f"/etc/systemd/system/{daemon.unit}.d/network.conf"
    daemon.host.put(drop_in, EXAMPLE.read_text().replace(EXAMPLE_NETWORK, daemon.peer.address))
    restart_for_good(daemon.host, daemon.unit)
    yield daemon
    daemon.host.run("rm", drop_in)
    restart_for_good(daemon.host, daemon.unit)


def is_answered(mesh: Mesh, daemon: Daemon) -> bool:
    """Ask a daemon from the client's place."""
    try:
        connection = mesh.connect(daemon.host, daemon.port, timeout_s=CONNECT_S)
    except TimeoutError:
        return False
    assert connection.ask("GET", "/health").status == 200
    connection.close()
    return True


def status(asking: Host, address: str, port: int) -> int:
    return int(asking.run("python3", "-c", ASK, f"http://{address}:{port}/health").stdout)


def test_outside_the_defined_network_nobody_is_answered(
    mesh: Mesh, defined_network: Daemon
) -> None:
    daemon = defined_network
    for _ in range(2):
        assert status(daemon.peer, daemon.host.address, daemon.port) == 200
        assert status(daemon.host, "127.0.0.1", daemon.port) == 200
        assert not is_answered(mesh, daemon)
        daemon.host.run("systemctl", "restart", daemon.unit)
    mesh.gateway.run("rolemeshctl", "explain", "poet")  # gateway and node speak with each other


def test_without_the_list_everybody_is(mesh: Mesh, daemon: Daemon) -> None:
    assert is_answered(mesh, daemon)
