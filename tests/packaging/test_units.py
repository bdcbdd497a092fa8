"""The units, users and rights that come with the packages, without booting anything."""

import re
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
RULE = ROOT / "systemd" / "polkit" / "50-rolemesh-node-agent.rules"
KNOWN_TO_252 = Path(__file__).with_name("keys-of-systemd-252.txt")

UNIT_DIRECTORY = "usr/lib/systemd/system"
EXPOSURE_LIMIT = 2.0


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


@pytest.mark.parametrize("unit", UNITS, ids=ids)
def test_no_key_is_newer_than_systemd_252(unit: Path) -> None:
    known = set(KNOWN_TO_252.read_text().split())
    used = {f"{section}.{key}" for section, key, _ in assignments(unit)}
    assert used - known == set()


@pytest.mark.parametrize("unit", UNITS, ids=ids)
def test_systemd_has_nothing_to_say_about_a_unit(unit: Path, bootable: Path) -> None:
    # Its exit status is 0 even where it ignores a line.
    command = ["systemd-analyze", "verify", "--man=no", f"--root={bootable}", instantiated(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("unit", SERVICES, ids=ids)
def test_a_service_is_hardly_exposed(unit: Path, bootable: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", f"--root={bootable}"]
    done = subprocess.run(
        [*command, instantiated(unit)], capture_output=True, text=True, check=True
    )
    exposure = re.search(r"Overall exposure level for .*?: ([0-9.]+)", done.stdout)
    assert exposure, done.stdout
    assert float(exposure[1]) <= EXPOSURE_LIMIT


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


def test_a_reload_of_the_agent_begins_with_a_check() -> None:
    commands = values(ROOT / "systemd" / "rolemesh-node-agent.service", "ExecReload")
    assert commands == ["/usr/bin/rolemesh-node-agent --check", "/bin/kill -HUP $MAINPID"]


def test_a_reload_of_the_gateway_goes_to_its_own_control_socket() -> None:
    unit = ROOT / "systemd" / "rolemesh-gateway.service"
    (command,) = values(unit, "ExecReload")
    assert (
        command
        == f"/usr/bin/rolemeshctl reload --url=unix:%t/{values(unit, 'RuntimeDirectory')[0]}/{NAME}"
    )


def test_a_second_agent_differs_from_the_first_only_in_what_is_its_own() -> None:
    first, second = (
        set(assignments(ROOT / "systemd" / name))
        for name in ("rolemesh-node-agent.service", "rolemesh-node-agent@.service")
    )
    own = {"Description", "ExecStart", "ExecReload", "StateDirectory", "PartOf", "LogExtraFields"}
    own |= {"ExecStartPre", "Environment", "ReadWritePaths"}  # the directory of its control socket
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
    names = {path.name for path in (installed / UNIT_DIRECTORY).iterdir()}
    assert names == {path.name for path in UNITS}
