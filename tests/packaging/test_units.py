"""The units, users and rights that come with the packages, without booting anything."""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rolemesh.names import INSTANCE_PATTERN
from rolemesh.relay.control_socket import NAME

ROOT = Path(__file__).parents[2]
UNITS = sorted(path for path in (ROOT / "systemd").iterdir() if path.is_file())
SERVICES = [path for path in UNITS if path.suffix == ".service"]
CPU_DROP_IN = ROOT / "systemd" / "rolemesh-llama@cpuN.service.d" / "10-cpu.conf"
HARDENING = ROOT / "docs" / "hardening.md"
NETWORK_DROP_IN = ROOT / "etc" / "examples" / "systemd" / "network.conf"
RULE = ROOT / "systemd" / "polkit" / "50-rolemesh-node-agent.rules"
KNOWN_TO_252 = Path(__file__).with_name("keys-of-systemd-252.txt")

UNIT_DIRECTORY = "usr/lib/systemd/system"
# What systemd 252 to 257 say of them, offline: nothing gets worse unseen.
MOST_EXPOSURE = {
    "rolemesh-gateway.service": 1.1,
    "rolemesh-node-agent.service": 1.4,
    "rolemesh-node-agent@second.service": 1.4,
    "rolemesh-llama@gpu0.service": 0.5,
    "rolemesh-llama@cpu0.service": 0.3,
}


def ids(path: Path) -> str:
    return path.name


def assignments(unit: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (section, key, value) for each line of a unit that sets something."""
    section = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            yield section, key, value


def values(unit: Path, key: str) -> list[str]:
    return [value for _, name, value in assignments(unit) if name == key]


def instantiated(unit: Path) -> str:
    return unit.name.replace("@.", "@gpu0.")


def sysusers(kind: str) -> set[str]:
    lines = "\n".join(path.read_text() for path in (ROOT / "systemd" / "sysusers.d").iterdir())
    return set(re.findall(rf"^{kind} (\S+)", lines, re.MULTILINE))


@pytest.mark.parametrize("unit", [*UNITS, CPU_DROP_IN, NETWORK_DROP_IN], ids=ids)
def test_no_key_is_newer_than_systemd_252(unit: Path) -> None:
    known = set(KNOWN_TO_252.read_text().split())
    used = {f"{section}.{key}" for section, key, _ in assignments(unit)}
    assert used - known == set()


@pytest.mark.parametrize("unit", [*map(instantiated, UNITS), "rolemesh-llama@cpu0.service"])
def test_systemd_has_nothing_to_say_about_a_unit(unit: str, bootable: Path) -> None:
    # Its exit status is 0 even where it ignores a line.
    command = ["systemd-analyze", "verify", "--man=no", f"--root={bootable}", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def security(unit: str, root: Path) -> str:
    command = ["systemd-analyze", "security", "--offline=yes", f"--root={root}", unit]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("unit", MOST_EXPOSURE)
def test_a_service_is_hardly_exposed(unit: str, bootable: Path) -> None:
    said = security(unit, bootable)
    exposure = re.search(r"Overall exposure level for .*?: ([0-9.]+)", said)
    assert exposure, said
    assert float(exposure[1]) <= MOST_EXPOSURE[unit], said


def test_the_exposure_of_every_service_has_a_limit() -> None:
    bare = {re.sub("@.*", "@", unit).replace(".service", "") for unit in MOST_EXPOSURE}
    assert bare == {path.stem for path in SERVICES}


def test_the_documented_figures_are_these() -> None:
    rows = re.findall(r"^\| `(rolemesh-\S+)` \| ([0-9.]+) \|", HARDENING.read_text(), re.MULTILINE)
    names = {name.replace("NAME", "second").replace("N.", "0."): float(most) for name, most in rows}
    assert names == MOST_EXPOSURE


@pytest.mark.parametrize("unit", ["rolemesh-gateway.service", "rolemesh-node-agent.service"])
def test_a_defined_network_is_what_systemd_takes_it_for(
    unit: str, bootable: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(bootable, root, symlinks=True)
    drop_in = root / "etc/systemd/system" / f"{unit}.d" / NETWORK_DROP_IN.name
    drop_in.parent.mkdir(parents=True)
    shutil.copy(NETWORK_DROP_IN, drop_in)
    command = ["systemd-analyze", "verify", "--man=no", f"--root={root}", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)
    assert "Service does not define an IP address allow list" in security(unit, bootable)
    assert "Service does not define an IP address allow list" not in security(unit, root)


@pytest.mark.parametrize("unit", SERVICES, ids=ids)
def test_only_what_is_writable_anyway_is_made_not_executable(unit: Path) -> None:
    """NoExecPaths= undoes ProtectSystem=strict for what it names (systemd 252 and 257)."""
    writable = {"/dev/shm", "/tmp", "/var/tmp"}
    for kind, base in (("State", "%S"), ("Runtime", "%t"), ("Cache", "%C")):
        for directory in " ".join(values(unit, f"{kind}Directory")).split():
            writable.add(f"{base}/{directory}")
    for path in " ".join(values(unit, "ReadWritePaths")).split():
        writable.add(path.lstrip("-").replace("/run/", "%t/"))
    named = " ".join(values(unit, "NoExecPaths")).split()
    assert {path.lstrip("-") for path in named} == writable


@pytest.mark.parametrize("unit", UNITS, ids=ids)
def test_the_manual_pages_that_a_unit_names_are_shipped(unit: Path) -> None:
    named = re.findall(r"man:([a-z-]+)\((\d)\)", " ".join(values(unit, "Documentation")))
    assert named
    assert all((ROOT / "docs" / "man" / f"{page}.{part}").exists() for page, part in named)


@pytest.mark.parametrize("unit", SERVICES, ids=ids)
def test_a_service_runs_a_program_of_this_project(unit: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for command in values(unit, "ExecStart"):
        assert Path(command.split()[0]).name in scripts


@pytest.mark.parametrize("unit", SERVICES, ids=ids)
def test_users_and_groups_of_a_service_are_made_before_it_starts(unit: Path) -> None:
    assert set(values(unit, "User")) <= sysusers("u")
    groups = values(unit, "Group") + " ".join(values(unit, "SupplementaryGroups")).split()
    assert set(groups) <= sysusers("u") | sysusers("g")


def test_owners_of_directories_are_made_before_them() -> None:
    for path in (ROOT / "systemd" / "tmpfiles.d").iterdir():
        for user, group in re.findall(r"^d \S+ \d+ (\S+) (\S+)", path.read_text(), re.MULTILINE):
            assert user in sysusers("u") | {"root"}
            assert group in sysusers("u") | sysusers("g") | {"root"}


@pytest.mark.parametrize("unit", SERVICES, ids=ids)
def test_a_refused_configuration_is_not_tried_again(unit: Path) -> None:
    assert values(unit, "Restart") == ["on-failure"]
    assert values(unit, "RestartPreventExitStatus") == ["78"]


@pytest.mark.parametrize("unit", SERVICES, ids=ids)
def test_no_record_is_dropped_by_a_rate_limit(unit: Path) -> None:
    assert values(unit, "LogRateLimitIntervalSec") == ["1s"], "0 means journald's own limit"
    assert values(unit, "LogRateLimitBurst") == ["1000000"]


@pytest.mark.parametrize(
    ("name", "directory"),
    [
        ("rolemesh-gateway.service", "rolemesh/gateway"),
        ("rolemesh-node-agent.service", "rolemesh/node"),
        ("rolemesh-node-agent@.service", "rolemesh/node-%i"),
    ],
)
def test_a_reload_goes_to_the_daemons_own_control_socket(name: str, directory: str) -> None:
    unit = ROOT / "systemd" / name
    own = values(unit, "RuntimeDirectory") or [
        each.removeprefix("RUNTIME_DIRECTORY=%t/")
        for each in values(unit, "Environment")
        if each.startswith("RUNTIME_DIRECTORY=")
    ]
    assert own == [directory]
    (command,) = values(unit, "ExecReload")
    assert command == f"/usr/bin/rolemeshctl reload --url=unix:%t/{directory}/{NAME}"


def test_a_second_agent_differs_from_the_first_only_in_what_is_its_own() -> None:
    first, second = (
        set(assignments(ROOT / "systemd" / name))
        for name in ("rolemesh-node-agent.service", "rolemesh-node-agent@.service")
    )
    own = {"Description", "ExecStart", "ExecReload", "StateDirectory", "PartOf", "LogExtraFields"}
    own |= {"ReloadPropagatedFrom"}
    own |= {"ExecStartPre", "Environment", "ReadWritePaths"}  # the directory of its control socket
    own |= {"NoExecPaths"}
    assert {key for _, key, _ in first ^ second} == own


@pytest.mark.parametrize("name", ["rolemesh-node-agent.service", "rolemesh-node-agent@.service"])
def test_all_agents_share_the_numbers_of_gpus(name: str) -> None:
    (directories,) = values(ROOT / "systemd" / name, "StateDirectory")
    own, shared = directories.split()
    assert shared == "rolemesh/gpus"
    # Newer systemd sorts them: the first in $STATE_DIRECTORY has to be the agent's own even then.
    assert sorted([own, shared]) == [own, shared]


def test_a_llama_server_has_no_network() -> None:
    unit = ROOT / "systemd" / "rolemesh-llama@.service"
    assert values(unit, "PrivateNetwork") == ["yes"]
    assert values(unit, "RestrictAddressFamilies") == ["AF_UNIX"]


def test_the_agent_may_manage_instances_and_no_other_unit() -> None:
    rule = RULE.read_text()
    pattern = re.search(r"!/\^(.*)\$/\.test\(unit\)", rule)
    assert pattern
    assert pattern[1] == rf"rolemesh-llama@{INSTANCE_PATTERN}\.service"
    for instance in ("gpu0", "gpu0-coder", "gpu0-mig6", "gpu3-2", "cpu0"):
        assert re.fullmatch(pattern[1], f"rolemesh-llama@{instance}.service")


def test_the_agent_may_manage_nothing_once_the_template_is_gone(installed: Path) -> None:
    template = re.search(r'"test", "-e", "/([^"]+)"', RULE.read_text())
    assert template
    assert (installed / template[1]).exists()


def test_every_unit_is_installed(installed: Path) -> None:
    names = {path.name for path in (installed / UNIT_DIRECTORY).iterdir() if path.is_file()}
    assert names == {path.name for path in UNITS}


def test_instances_without_a_gpu_are_stricter_from_the_start(installed: Path) -> None:
    folders = {path for path in (installed / UNIT_DIRECTORY).iterdir() if path.is_dir()}
    assert {path.name for path in folders} == {
        f"rolemesh-llama@cpu{number}.service.d" for number in range(8)
    }
    for folder in folders:
        assert (folder / CPU_DROP_IN.name).read_text() == CPU_DROP_IN.read_text()
