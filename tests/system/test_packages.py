"""Our packages on the Debians they are for: installed with nothing configured, and removed."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.lab.host import Host
from tests.lab.hosts import Lab
from tests.lab.poll import eventually_sync
from tests.system.conftest import REPOSITORY, Layers, install

DAEMONS = ("rolemesh-gateway.service", "rolemesh-node-agent.service")
UNITS = (
    *DAEMONS,
    "rolemesh-node-agent@second.service",
    "rolemesh-llama@gpu0.service",
    "rolemesh-llama.target",
    "rolemesh-llama.slice",
)
MOST_EXPOSURE = 2.0
SMOKE = REPOSITORY / "packaging" / "debian" / "tests"

# What package management, the host itself and its tests write.
NOT_OURS = (
    "/dev",
    "/proc",
    "/run",
    "/srv",
    "/sys",
    "/tmp",
    "/var/cache/apt",
    "/var/lib/apt",
    "/var/lib/dpkg",
    "/var/lib/systemd",
    "/var/log",
    "/var/tmp",
)
MADE_BY_AN_ADMIN = {
    "/etc/rolemesh/gateway.d/90-mine.yaml",
    "/etc/rolemesh/node.d/90-mine.yaml",
    "/etc/rolemesh/tls/mine.pem",
    "/etc/systemd/system/rolemesh-gateway.service.d/mine.conf",
    "/etc/systemd/system/rolemesh-llama@.service.d/mine.conf",
    "/var/lib/rolemesh/models/mine.gguf",
}
KEYS = ("node.key", "node.d/50-join.yaml", "gateway.d/key-me.yaml", "gateway.d/node-key-a.yaml")


@pytest.fixture(scope="module", params=["trixie", "bookworm", "forky"])
def suite(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def bare(
    lab: Lab, suite: str, unpacked_root: Callable[[str], Layers], binds: Mapping[str, Path]
) -> tuple[Host, frozenset[str]]:
    """Return a host with nothing of ours, and the files it has."""
    seen = {**binds, "/srv/smoke": SMOKE}
    (host,) = lab.boot(["bare"], root=unpacked_root(suite), binds=seen)
    return host, frozenset(files(host))


@pytest.fixture(scope="module")
def host(bare: tuple[Host, frozenset[str]]) -> Host:
    """Return a host on which our packages have just been installed."""
    host, _ = bare
    install(host)
    return host


def files(host: Host) -> Iterator[str]:
    """Yield all files and folders of a host that our packages could have left there."""
    pruned = " -o ".join(f"-path {folder}" for folder in NOT_OURS)
    found = host.run("sh", "-c", f"find / -xdev \\( {pruned} \\) -prune -o -print; ls -d /run/*")
    yield from found.stdout.splitlines()


def states(host: Host) -> dict[str, tuple[str, str]]:
    """Return, of each daemon, whether it is enabled and whether it runs."""
    return {
        unit: (host.show(unit, "UnitFileState"), host.show(unit, "ActiveState")) for unit in DAEMONS
    }


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


def test_the_smoke_test_that_comes_with_the_source_passes(host: Host) -> None:
    """As autopkgtest would run it."""
    script = "mkdir /tmp/autopkgtest && AUTOPKGTEST_TMP=/tmp/autopkgtest /srv/smoke/smoke 2>&1"
    assert "hello" in host.run("sh", "-c", script).stdout


def test_what_is_installed_again_is_as_the_admin_left_it(host: Host) -> None:
    gateway, agent = DAEMONS
    host.put("/etc/rolemesh/gateway.d/90-mine.yaml", "limits: {drain_s: 7}\n")
    host.run("systemctl", "disable", "--now", gateway)
    host.run("systemctl", "stop", agent, "rolemesh-llama.target")
    left = {gateway: ("disabled", "inactive"), agent: ("enabled", "inactive")}
    assert states(host) == left
    reinstall(host)
    assert states(host) == left
    assert host.show("rolemesh-llama.target", "ActiveState") == "inactive"
    assert "drain_s: 7" in host.run("cat", "/etc/rolemesh/gateway.d/90-mine.yaml").stdout
    host.run("systemctl", "mask", gateway)
    host.run("systemctl", "start", agent)
    reinstall(host)
    assert states(host) == {gateway: ("masked", "inactive"), agent: ("enabled", "active")}
    host.run("systemctl", "unmask", gateway)
    host.run("systemctl", "enable", "--now", gateway)
    assert host.run("ls", "/run/").stdout.count("stopped") == 0


def reinstall(host: Host) -> None:
    host.run("sh", "-c", "apt-get install -y --reinstall /srv/packages/*.deb")


def test_a_removal_stops_everything_and_an_installation_starts_it_again(host: Host) -> None:
    before = states(host)
    assert before == dict.fromkeys(DAEMONS, ("enabled", "active"))
    host.run("sh", "-c", "apt-get remove -y 'rolemesh*'")
    nothing_of_ours_runs(host)
    assert host.run("cat", "/etc/rolemesh/gateway.d/90-mine.yaml").stdout
    install(host)
    assert states(host) == before


def test_a_purge_leaves_what_an_admin_made_and_says_so(
    host: Host, bare: tuple[Host, frozenset[str]]
) -> None:
    _, before = bare
    host.run("systemctl", "enable", "rolemesh-llama@gpu0", "rolemesh-node-agent@second")
    host.run("mkdir", "-p", *(str(Path(path).parent) for path in MADE_BY_AN_ADMIN))
    host.run("touch", *MADE_BY_AN_ADMIN, *(f"/etc/rolemesh/{name}" for name in KEYS))
    said = host.run("sh", "-c", "apt-get purge -y 'rolemesh*'").stdout
    nothing_of_ours_runs(host)
    left = set(files(host)) - before
    folders = {str(parent) for path in MADE_BY_AN_ADMIN for parent in Path(path).parents}
    assert left - folders == MADE_BY_AN_ADMIN
    assert set(said.splitlines()) >= MADE_BY_AN_ADMIN


def nothing_of_ours_runs(host: Host) -> None:
    kinds = ("--type=service,target", "--state=active")
    assert host.run("systemctl", "list-units", *kinds, "--no-legend", "rolemesh*").stdout == ""

    def no_process_is_left() -> bool:
        return "rolemesh" not in host.run("ps", "-eo", "args").stdout

    eventually_sync(no_process_is_left, what="no process of ours")
