"""packaging/install-venv.sh: the way for systems without packages, on a host that has none of ours."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.lab.cache import cache_folder
from tests.lab.host import Host
from tests.lab.hosts import Lab
from tests.lab.llama_server import NoLlamaServer, llama_server_seen_at
from tests.lab.models import TinyModel, make_model
from tests.lab.poll import eventually_sync
from tests.lab.wheels import NoWheels, wheels
from tests.system.conftest import Layers
from tests.system.mesh import CLIENT_KEY, GATEWAY, NODE_KEY

SOURCE = Path(__file__).parents[2]
AGENT = "rolemesh-node-agent.service"
UNITS = ("rolemesh-gateway.service", AGENT, "rolemesh-llama.target")
LLAMA = "rolemesh-llama@cpu0.service"
PYTHON = "3.13"  # of Debian 13
MODEL = TinyModel(name="venv-tiny", says="From a virtual environment .")
INSTALL = "PIP_NO_INDEX=1 PIP_FIND_LINKS=/srv/wheels /srv/source/packaging/install-venv.sh"
INSTALL_TIMEOUT_S = 150


@pytest.fixture(scope="module")
def binds() -> Mapping[str, Path]:
    """Return what such a host is given: the checkout, a package index, llama-server, a model."""
    try:
        llama, _ = llama_server_seen_at(Path("/srv/llama"))
        index = wheels(PYTHON)
    except (NoLlamaServer, NoWheels) as err:
        pytest.skip(str(err))
    make_model(MODEL)
    return {
        "/srv/source": SOURCE,
        "/srv/wheels": index,
        "/srv/llama": llama,
        "/srv/models": cache_folder("models"),
    }


@pytest.fixture(scope="module")
def host(lab: Lab, unpacked_root: Callable[[str], Layers], binds: Mapping[str, Path]) -> Host:
    """Return a host where the script has run, and both daemons are enabled and configured."""
    (host,) = lab.boot(["box"], root=unpacked_root("trixie"), binds=binds)
    host.run("sh", "-c", INSTALL, timeout_s=INSTALL_TIMEOUT_S)
    path = f"/srv/models/{make_model(MODEL).name}"
    host.put(
        "/etc/rolemesh/node.d/50-test.yaml",
        f"gateways: [{{url: 'http://127.0.0.1:8000', api_key: {NODE_KEY}}}]\n"
        "llama_server: {path: /srv/llama/bin-at-srv-llama/llama-server}\n"
        f"models: [{{model_id: tiny, path: {path}, roles: [coder], context_size: 1024}}]\n",
    )
    host.put("/etc/rolemesh/gateway.d/50-test.yaml", str(dict(GATEWAY)))
    host.run("systemctl", "enable", "--now", *UNITS)
    return host


def says(host: Host) -> str:
    """Return what the coder answers, as soon as there is one."""
    body = {"model": "coder", "messages": [{"role": "user", "content": "Hello"}]}
    curl = (
        "curl",
        "--silent",
        "--max-time",
        "30",
        "--header",
        f"Authorization: Bearer {CLIENT_KEY}",
    )

    def answer() -> str:
        url = "http://127.0.0.1:8000/v1/chat/completions"
        reply = json.loads(host.run(*curl, "--data", json.dumps(body), url).stdout)
        return "" if "error" in reply else str(reply["choices"][0]["message"]["content"])

    return eventually_sync(answer, what="an answer of the coder", deadline_s=60)


def test_the_units_start_and_a_chat_is_answered(host: Host) -> None:
    assert says(host) == MODEL.says
    program = host.run("readlink", f"/proc/{host.show(UNITS[0], 'MainPID')}/exe").stdout.strip()
    assert program.startswith("/usr/bin/python3")
    command = host.run("cat", f"/proc/{host.show(UNITS[0], 'MainPID')}/cmdline").stdout
    assert command.startswith("/opt/rolemesh/bin/python")
    assert host.run("systemctl", "is-active", LLAMA).stdout == "active\n"


def test_operators_have_their_program(host: Host) -> None:
    assert "http://" in host.run("rolemeshctl", "status").stdout


def test_an_upgrade_leaves_the_llama_server_alone(host: Host) -> None:
    says(host)
    before = host.show(LLAMA, "MainPID")
    lost = f"/opt/rolemesh/lib/python{PYTHON}/site-packages/rolemesh/py.typed"
    host.run("rm", lost)
    host.run("sh", "-c", INSTALL, timeout_s=INSTALL_TIMEOUT_S)
    host.run("test", "-e", lost)
    assert says(host) == MODEL.says
    assert host.show(LLAMA, "MainPID") == before


def test_the_agent_can_run_the_llama_servers_itself(host: Host) -> None:
    """As where polkit knows no rules in JavaScript."""
    drop_in = f"/etc/systemd/system/{AGENT}.d/child.conf"
    host.run("systemctl", "stop", "rolemesh-llama.target")
    host.run("rm", "/usr/share/polkit-1/rules.d/50-rolemesh-node-agent.rules")
    host.put(drop_in, (SOURCE / "etc/examples/systemd/child.conf").read_text())
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", AGENT)
    assert says(host) == MODEL.says
    assert host.run("systemctl", "is-active", LLAMA, check=False).stdout == "inactive\n"
    group = host.run("systemctl", "status", "--no-pager", AGENT).stdout
    assert "/srv/llama/bin-at-srv-llama/llama-server" in group


def test_a_python_that_no_unit_sees_is_refused(host: Host) -> None:
    host.run("install", "/usr/bin/python3", "/root/python3")
    refused = host.run("sh", "-c", f"PYTHON=/root/python3 {INSTALL}", check=False)
    assert refused.returncode == 1
    assert "/root/python3 is in a home directory" in refused.stderr


def test_removal_takes_away_what_it_brought(host: Host) -> None:
    host.run("/srv/source/packaging/install-venv.sh", "remove")
    units = host.run("systemctl", "list-units", "--no-legend", "--type=service", "rolemesh*").stdout
    assert units == ""
    left = host.run("find", "/usr", "/opt", "-name", "*rolemesh*").stdout
    assert left == ""
    assert host.run("ls", "/etc/rolemesh/gateway.d").stdout == "50-test.yaml\n"
