"""Who runs the units."""

from pathlib import Path

import pytest

from rolemesh.agent.child_supervisor import ChildSupervisor
from rolemesh.agent.instance_files import InstanceFiles
from rolemesh.agent.systemd_units import TEMPLATE, SystemdUnits
from rolemesh.agent.unit_host import choose_unit_host, systemd_hosts_units
from rolemesh.config.dropins import ConfigSource
from rolemesh.errors import ConfigError
from rolemesh.names import NodeId


def source(config_dir: Path | None = None) -> ConfigSource:
    return ConfigSource(program="node", config_dir=config_dir)


@pytest.mark.parametrize(
    ("choice", "booted", "template", "expected"),
    [
        ("", True, True, True),
        ("", True, False, False),
        ("", False, True, False),
        ("systemd", False, False, True),
        ("child", True, True, False),
    ],
)
def test_systemd_does_where_it_is_pid_1_and_knows_the_template(
    tmp_path: Path, choice: str, booted: bool, template: bool, expected: bool
) -> None:
    run, units = tmp_path / "run", tmp_path / "units"
    units.mkdir()
    if booted:
        run.mkdir()
    if template:
        (units / TEMPLATE).touch()
    environ = {"ROLEMESH_UNIT_CONTROL": choice} if choice else {}
    unit_path = (tmp_path / "absent", units)
    assert systemd_hosts_units(environ, booted=run, unit_path=unit_path) is expected


def test_another_choice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'ROLEMESH_UNIT_CONTROL: expected .* found "docker"'):
        systemd_hosts_units({"ROLEMESH_UNIT_CONTROL": "docker"})


def test_children_have_their_files_below_the_runtime_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLEMESH_UNIT_CONTROL", "child")
    monkeypatch.setenv("ROLEMESH_RUNTIME_DIRECTORY", str(tmp_path))
    host = choose_unit_host(node_id=NodeId("box"), state_directory=tmp_path, source=source())
    assert isinstance(host.control, ChildSupervisor)
    assert host.files == InstanceFiles.below(tmp_path)


def test_units_of_systemd_have_theirs_in_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLEMESH_UNIT_CONTROL", "systemd")
    host = choose_unit_host(node_id=NodeId("box"), state_directory=tmp_path, source=source())
    assert isinstance(host.control, SystemdUnits)
    assert host.files == InstanceFiles.of_systemd()


def test_files_that_systemds_units_would_not_read_are_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ROLEMESH_UNIT_CONTROL", "systemd")
    given = source(config_dir=Path("/x"))
    choose_unit_host(node_id=NodeId("box"), state_directory=tmp_path, source=given)
    assert "without --config-dir=/x" in caplog.text


def test_units_read_the_configuration_of_the_agent_that_starts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ROLEMESH_UNIT_CONTROL", "systemd")
    given = source(config_dir=Path("/etc/rolemesh/node-second.d"))
    host = choose_unit_host(node_id=NodeId("box"), state_directory=tmp_path, source=given)
    assert host.files == InstanceFiles.of_systemd("second")
    assert not caplog.records
