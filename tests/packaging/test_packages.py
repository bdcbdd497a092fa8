"""The Debian packages, as files: what is in them, what they need, what they run when installed."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

import rolemesh

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

Packages = Mapping[str, Path]

NAMES = ["rolemesh", "rolemesh-common", "rolemesh-gateway", "rolemesh-node-agent"]
DISTRIBUTION_NAMES = {"PyYAML": "python3-yaml", "nvidia-ml-py": "python3-pynvml"}
MODULES = "usr/lib/python3/dist-packages"

COMMON_FILES = {
    "usr/bin/rolemeshctl",
    "usr/lib/sysusers.d/rolemesh-common.conf",
    "usr/share/bash-completion/completions/rolemeshctl",
    "usr/share/man/man1/rolemeshctl.1.gz",
    "usr/share/man/man5/rolemesh-config.5.gz",
}
GATEWAY_FILES = {
    "etc/rolemesh/gateway.d/README",
    "usr/bin/rolemesh-gateway",
    "usr/lib/systemd/system/rolemesh-gateway.service",
    "usr/lib/sysusers.d/rolemesh-gateway.conf",
    "usr/lib/tmpfiles.d/rolemesh-gateway.conf",
    "usr/share/man/man8/rolemesh-gateway.8.gz",
}
NODE_AGENT_FILES = {
    "etc/needrestart/conf.d/rolemesh.conf",
    "etc/rolemesh/node.d/README",
    "usr/bin/rolemesh-node-agent",
    "usr/lib/systemd/system/rolemesh-llama.slice",
    "usr/lib/systemd/system/rolemesh-llama.target",
    "usr/lib/systemd/system/rolemesh-llama@.service",
    *(f"usr/lib/systemd/system/rolemesh-llama@cpu{n}.service.d/10-cpu.conf" for n in range(8)),
    "usr/lib/systemd/system/rolemesh-node-agent.service",
    "usr/lib/systemd/system/rolemesh-node-agent@.service",
    "usr/lib/sysusers.d/rolemesh-node-agent.conf",
    "usr/lib/tmpfiles.d/rolemesh-node-agent.conf",
    "usr/libexec/rolemesh/rolemesh-llama",
    "usr/share/lintian/overrides/rolemesh-node-agent",
    "usr/share/man/man8/rolemesh-llama.8.gz",
    "usr/share/man/man8/rolemesh-node-agent.8.gz",
    "usr/share/polkit-1/rules.d/50-rolemesh-node-agent.rules",
}


def field(package: Path, name: str) -> str:
    command = ["dpkg-deb", "--field", str(package), name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def package_names(relation: str) -> set[str]:
    """Return the first name of each alternative in a field such as Depends."""
    return {re.split(r"[ (|:]", each.strip())[0] for each in relation.split(",")}


def files(root: Path) -> set[str]:
    found = (path.relative_to(root) for path in root.rglob("*") if not path.is_dir())
    return {str(path) for path in found if path.parts[0] != "DEBIAN"}


def without_documents(names: set[str]) -> set[str]:
    return {name for name in names if not name.startswith("usr/share/doc/")}


def test_the_packages_are_these_four_and_for_every_architecture(packages: Packages) -> None:
    assert sorted(packages) == NAMES
    assert {field(package, "Architecture") for package in packages.values()} == {"all"}


def test_packages_and_program_have_the_same_version(packages: Packages) -> None:
    versions = {field(package, "Version").rpartition("-")[0] for package in packages.values()}
    assert versions == {rolemesh.__version__}


def test_gateway_and_agent_bring_their_own_files_only(unpacked: Packages) -> None:
    assert without_documents(files(unpacked["rolemesh-gateway"])) == GATEWAY_FILES
    assert without_documents(files(unpacked["rolemesh-node-agent"])) == NODE_AGENT_FILES
    assert without_documents(files(unpacked["rolemesh"])) == set()


def test_the_common_package_brings_the_modules_and_what_belongs_to_no_daemon(
    unpacked: Packages,
) -> None:
    shipped = without_documents(files(unpacked["rolemesh-common"]))
    assert {name for name in shipped if not name.startswith("usr/lib/python3/")} == COMMON_FILES


def test_every_module_and_schema_is_shipped(unpacked: Packages, repository: Path) -> None:
    shipped = files(unpacked["rolemesh-common"] / MODULES / "rolemesh")
    sources = repository / "rolemesh"
    wanted = {*sources.rglob("*.py"), *sources.rglob("*.json"), sources / "py.typed"}
    assert shipped == {str(path.relative_to(sources)) for path in wanted}


def test_documents_and_examples_can_be_read_where_they_lie(unpacked: Packages) -> None:
    documents = unpacked["rolemesh-common"] / "usr/share/doc/rolemesh-common"
    assert (documents / "configuration.md").exists()
    assert list((documents / "examples/gateway.d").glob("*.yaml"))


def test_the_distribution_has_all_that_is_needed(packages: Packages, repository: Path) -> None:
    """No name outside Debian 12 and 13, and none of the project's own dependencies forgotten."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[><=\[]", each)[0] for each in project["dependencies"]]
    wanted = {DISTRIBUTION_NAMES.get(name, f"python3-{name.lower()}") for name in names}
    # Debian has the binding to NVML only outside main.
    assert "python3-pynvml" in field(packages["rolemesh-node-agent"], "Suggests")
    depends = package_names(field(packages["rolemesh-common"], "Depends"))
    python = {name for name in depends if name.startswith("python3-")}
    assert python == (wanted - {"python3-pynvml"}) | {"python3-systemd"}


def test_all_parts_have_one_version(packages: Packages) -> None:
    exactly = f"(= {field(packages['rolemesh'], 'Version')})"
    for name in ("rolemesh-gateway", "rolemesh-node-agent"):
        assert f"rolemesh-common {exactly}" in field(packages[name], "Depends")
        assert f"{name} {exactly}" in field(packages["rolemesh"], "Depends")


def test_nothing_is_configured_by_a_package(unpacked: Packages) -> None:
    """A drop-in that a package brings would stay in force after the package is gone."""
    in_etc = {name for root in unpacked.values() for name in files(root) if name[:4] == "etc/"}
    assert not [name for name in in_etc if name.endswith(".yaml")]
    assert not (unpacked["rolemesh-common"] / "usr/lib/rolemesh").exists()


def test_programs_say_their_version(unpacked: Packages) -> None:
    environment = os.environ | {"PYTHONPATH": str(unpacked["rolemesh-common"] / MODULES)}
    owned = {
        "rolemesh-common": COMMON_FILES,
        "rolemesh-gateway": GATEWAY_FILES,
        "rolemesh-node-agent": NODE_AGENT_FILES,
    }
    programs = [
        unpacked[owner] / name
        for owner, names in owned.items()
        for name in sorted(names)
        if name.startswith(("usr/bin/", "usr/libexec/"))
    ]
    assert len(programs) == 4
    for program in programs:
        assert program.read_text().startswith("#!/usr/bin/python3\n")
        assert os.access(program, os.X_OK)
        command = [sys.executable, str(program), "--version"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == f"{program.name} {rolemesh.__version__}\n"


def test_removal_ends_the_agent_before_its_llama_servers(unpacked: Packages) -> None:
    """Else it could start one again in between."""
    script = (unpacked["rolemesh-node-agent"] / "DEBIAN/prerm").read_text()
    agent = script.index("stop rolemesh-node-agent.service")
    assert agent < script.index("stop rolemesh-llama.target")


def test_users_are_made_before_directories_and_these_before_the_start(unpacked: Packages) -> None:
    script = (unpacked["rolemesh-node-agent"] / "DEBIAN/postinst").read_text()
    steps = ("systemd-sysusers", "systemd-tmpfiles", "deb-systemd-invoke")
    positions = [script.index(f"{step} ") for step in steps]
    assert positions == sorted(positions)
