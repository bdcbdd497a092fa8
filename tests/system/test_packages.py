"""Our packages on the Debians they are for: installed with nothing configured, and removed."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.lab.host import Host
from tests.lab.hosts import Lab
from tests.lab.poll import eventually_sync
from tests.system.conftest import Layers, install

DAEMONS = ("rolemesh-gateway.service", "rolemesh-node-agent.service")
UNITS = (
    *DAEMONS,
    "rolemesh-node-agent@second.service",
    "rolemesh-llama@gpu0.service",
    "rolemesh-llama.target",
    "rolemesh-llama.slice",
)
MOST_EXPOSURE = 2.0


@pytest.fixture(scope="module", params=["trixie", "bookworm"])
def suite(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def host(
    lab: Lab, suite: str, unpacked_root: Callable[[str], Layers], binds: Mapping[str, Path]
) -> Host:
    """Return a host on which our packages have just been installed."""
    (host,) = lab.boot(["bare"], root=unpacked_root(suite), binds=binds)
    install(host)
    return host


def test_both_daemons_start_with_no_configuration_at_all(host: Host) -> None:
    for unit in DAEMONS:
        assert host.show(unit, "UnitFileState") == "enabled"
        assert host.run("systemctl", "is-active", unit, check=False).stdout == "active\n"
        assert host.show(unit, "NRestarts") == "0"
    assert host.run("systemctl", "--failed", "--no-legend").stdout == ""


def test_verify_has_nothing_to_say_of_any_unit(host: Host) -> None:
    done = host.run("systemd-analyze", "verify", "--man=no", *UNITS, check=False)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("unit", [*DAEMONS, "rolemesh-llama@cpu0.service"])
def test_little_of_the_host_is_exposed_to_a_unit(host: Host, unit: str) -> None:
    host.run("systemctl", "start", unit, check=False)
    verdict = host.run("systemd-analyze", "security", "--no-pager", unit, check=False).stdout
    exposure = float(verdict.partition("exposure level for")[2].split()[1])
    assert exposure <= MOST_EXPOSURE, verdict


def test_a_configuration_that_is_refused_does_not_make_a_daemon_loop(host: Host) -> None:
    for unit, program in zip(DAEMONS, ("gateway", "node"), strict=True):
        bad = f"/etc/rolemesh/{program}.d/90-bad.yaml"
        host.put(bad, "lisen: {port: 1}\n")
        assert host.run("systemctl", "restart", unit, check=False).returncode != 0
        assert host.show(unit, "ActiveState") == "failed"
        assert host.show(unit, "ExecMainStatus") == "78"
        assert host.show(unit, "NRestarts") == "0"
        assert f"{bad}:1: lisen: unknown key" in host.journal_text(f"--unit={unit}")
        host.run("rm", bad)
        host.run("systemctl", "start", unit)


def test_an_instance_without_a_model_says_so_and_does_not_loop(host: Host) -> None:
    unit = "rolemesh-llama@gpu7.service"
    assert host.run("systemctl", "start", unit, check=False).returncode != 0
    assert host.show(unit, "ExecMainStatus") == "78"
    assert host.show(unit, "NRestarts") == "0"
    assert "nothing says what gpu7 runs" in host.journal_text(f"--unit={unit}")


def test_people_find_the_manual_pages(host: Host) -> None:
    for unit in (*DAEMONS, "rolemesh-llama@gpu0.service"):
        pages = re.findall(r"man:([\w-]+)\((\d)\)", host.show(unit, "Documentation"))
        assert pages
        for name, section in pages:
            found = host.run("sh", "-c", f"ls /usr/share/man/man{section}/{name}.{section}*")
            assert found.stdout


def test_a_purge_leaves_neither_processes_nor_units(host: Host) -> None:
    keys = ("node.key", "node.d/50-join.yaml", "gateway.d/key-me.yaml", "gateway.d/node-key-a.yaml")
    host.run("touch", *(f"/etc/rolemesh/{name}" for name in keys))
    host.run("sh", "-c", "apt-get purge -y 'rolemesh*'")
    kinds = ("--type=service,target", "--state=active")
    assert host.run("systemctl", "list-units", *kinds, "--no-legend", "rolemesh*").stdout == ""

    def no_process_is_left() -> bool:
        return "rolemesh" not in host.run("ps", "-eo", "args").stdout

    eventually_sync(no_process_is_left, what="no process of ours")
    assert host.run("ls", "-A", "/etc/rolemesh", check=False).returncode != 0
