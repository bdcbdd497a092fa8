"""Our rpms on a host: what systemd does when they are installed, upgraded and erased.

The host is a Debian that has the names, file triggers and presets of a Fedora (tests/lab/fedora.spec).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.lab.cache import cache_folder
from tests.lab.host import Host
from tests.lab.host_root import MASKED_UNITS
from tests.lab.hosts import Lab
from tests.lab.llama_server import NoLlamaServer, llama_server_seen_at
from tests.lab.poll import eventually_sync
from tests.lab.rpms import NEWER, PYTHON
from tests.lab.tool_root import tool_root
from tests.system.hammer import hammering
from tests.system.mesh import (
    AGENT,
    AGENT_PORT,
    ENDLESS_TOKENS,
    GATEWAY,
    GATEWAY_PORT,
    GATEWAY_UNIT,
    LLAMA_FOLDER,
    MODELS_FOLDER,
    Mesh,
    drop_in,
    llama_server_of,
    llama_unit,
    model,
    node_basics,
)

DAEMONS = (GATEWAY_UNIT, AGENT)
PATIENCE_S = 60


@pytest.fixture(scope="module")
def host(lab: Lab, rpms: Path, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """Return a host on which our rpms have just been installed."""
    try:
        tree, _ = llama_server_seen_at(LLAMA_FOLDER)
    except NoLlamaServer as err:
        pytest.skip(str(err))
    masks = tmp_path_factory.mktemp("masks")
    units = masks / "etc/systemd/system"
    units.mkdir(parents=True)
    for unit in MASKED_UNITS:
        (units / unit).symlink_to("/dev/null")
    binds = {
        "/srv/rpms": rpms,
        str(LLAMA_FOLDER): tree,
        str(MODELS_FOLDER): cache_folder("models"),
    }
    (host,) = lab.boot(["box"], root=(masks, tool_root()), binds=binds)
    rpm(host, "--install", "stand-in")
    assert "rolemesh" not in rpm(host, "--install", "ours")
    return host


def rpm(host: Host, verb: str, folder: str) -> str:
    """Install or upgrade what is in a folder; returns what rpm says."""
    command = f"rpm {verb} /srv/rpms/{folder}/*.noarch.rpm"
    done = host.run("sh", "-c", command, timeout_s=2 * PATIENCE_S)
    return done.stdout + done.stderr


def states(host: Host, name: str) -> list[str]:
    return [host.show(unit, name) for unit in DAEMONS]


@pytest.fixture(scope="module")
def mesh(lab: Lab, host: Host) -> Mesh:
    """Return the host configured and started, as an administrator does."""
    drop_in(host, "gateway", "50-test.yaml", GATEWAY)
    configuration = {
        **node_basics(host),
        "models": [model("poet", says="on and on", loop=True, context=ENDLESS_TOKENS, parallel=2)],
        "instances": {"cpu0": {"model": "poet-gguf"}},
    }
    drop_in(host, "node", "50-test.yaml", configuration)
    host.run("systemctl", "enable", "--now", *DAEMONS)
    mesh = Mesh(lab=lab, gateway=host, node=host)
    mesh.wait_until_usable("poet")
    return mesh


@contextmanager
def upgrade(host: Host, folder: str) -> Iterator[None]:
    """Upgrade to what is in a folder; the block begins when the first new files are there."""
    before = installed_version(host)
    with ThreadPoolExecutor(1) as pool:
        upgrading = pool.submit(rpm, host, "--upgrade", folder)
        eventually_sync(
            lambda: upgrading.done() or installed_version(host) != before,
            what="new files",
            deadline_s=PATIENCE_S,
        )
        yield
        assert "rolemesh" not in upgrading.result()


def installed_version(host: Host) -> str:
    """Return the line with the version of the program on disk; "" while there is none."""
    module = f"/usr/lib/python{PYTHON}/site-packages/rolemesh/__init__.py"
    return host.run("grep", "__version__", module, check=False).stdout


def test_an_installation_starts_nothing_that_presets_do_not_enable(host: Host) -> None:
    assert states(host, "UnitFileState") == ["disabled", "disabled"]
    assert states(host, "ActiveState") == ["inactive", "inactive"]
    assert host.run("rpm", "--verify", "--all").stdout == ""


def test_a_chat_is_answered_once_an_admin_has_started_them(mesh: Mesh) -> None:
    assert mesh.chat("poet", max_tokens=4).says


def test_an_upgrade_breaks_nothing_and_keeps_the_models(mesh: Mesh, host: Host) -> None:
    llama_server, first = llama_server_of(host, "cpu0"), main_pid(host)
    with (
        upgrade(host, "newer"),
        closing(mesh.connect()) as connection,
        closing(connection.stream("poet")) as endless,
    ):
        with hammering(mesh.lab, host, GATEWAY_PORT) as hammered:
            eventually_sync(
                lambda: main_pid(host) != first, what="a new gateway", deadline_s=PATIENCE_S
            )
            hammered.wait_for_more()
        assert host.run("ps", "-o", "comm=", first).stdout == "rolemesh-gatewa\n"
        events = [line for _ in range(100) if (line := endless.readline().strip())]
        assert all(line.startswith(b"data: {") for line in events), events
    assert (hammered.refused, hammered.broken, hammered.surprises) == (0, 0, [])
    assert mesh.ask("GET", "/health").json["version"] == NEWER
    assert mesh.ask_node("GET", "/health").json["version"] == NEWER
    assert llama_server_of(host, "cpu0") == llama_server
    mesh.wait_until_usable("poet")
    assert mesh.chat("poet", max_tokens=4).says


def main_pid(host: Host) -> str:
    return host.show(GATEWAY_UNIT, "MainPID")


def test_an_upgrade_leaves_alone_what_an_admin_has_stopped(mesh: Mesh, host: Host) -> None:
    host.run("systemctl", "disable", "--now", GATEWAY_UNIT)
    rpm(host, "--upgrade --oldpackage", "ours")
    assert states(host, "UnitFileState") == ["disabled", "enabled"]
    assert states(host, "ActiveState") == ["inactive", "active"]


def test_erasing_ends_everything(mesh: Mesh, host: Host) -> None:
    drop_in(host, "node-second", "50-test.yaml", {"listen": {"port": AGENT_PORT + 1}})
    host.run("systemctl", "enable", "--now", "rolemesh-node-agent@second", llama_unit("cpu0"))
    host.run("sh", "-c", "rpm --erase $(rpm --query --all 'rolemesh*')")

    def no_process_is_left() -> bool:
        return "rolemesh" not in host.run("ps", "-eo", "args").stdout

    eventually_sync(no_process_is_left, what="no process of ours")
    kinds = ("--type=service,target", "--state=active")
    assert host.run("systemctl", "list-units", *kinds, "--no-legend", "rolemesh*").stdout == ""
    links = host.run("find", "/etc/systemd/system", "-name", "rolemesh*", "-type", "l")
    assert links.stdout == ""
    left = host.run("find", "/etc/rolemesh", "-type", "f").stdout.split()
    assert sorted(left) == [
        "/etc/rolemesh/gateway.d/50-test.yaml",
        "/etc/rolemesh/node-second.d/50-test.yaml",
        "/etc/rolemesh/node.d/50-test.yaml",
    ]
