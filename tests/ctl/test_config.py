import json
from pathlib import Path

import pytest

from rolemesh.config.dropins import ConfigSource
from rolemesh.ctl.config import daemon_environment
from tests.ctl.conftest import Ctl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a configuration directory with one file."""
    folder = tmp_path / "gateway.d"
    folder.mkdir(mode=0o700)
    (folder / "10-a.yaml").write_text("listen: {port: 9000}\n")
    return folder


def test_check_says_what_the_daemons_say(ctl: Ctl, folder: Path) -> None:
    done = ctl("config", "check", "--config-dir", folder)
    assert done.status == 0
    assert done.out == "OK: 1 file, no aliases, no client keys, no node keys, listening on 127.0.0.1:9000\n"  # fmt: skip
    (folder / "20-b.yaml").write_text("lisen: {}\n")
    done = ctl("config", "check", "--config-dir", folder)
    assert done.status == 78
    assert f'{folder}/20-b.yaml:1: lisen: unknown key; did you mean "listen"?' in done.err


def test_programs_get_problems_and_warnings_as_parts(ctl: Ctl, folder: Path) -> None:
    done = ctl("config", "check", "--json", "--config-dir", folder)
    assert (done.status, json.loads(done.out)) == (
        0,
        {"valid": True, "problems": [], "warnings": []},
    )
    (folder / "20-b.yml").write_text("")
    (folder / "30-c.yaml").write_text("listen: {port: high}\n")
    done = ctl("config", "check", "--json", "--config-dir", folder)
    verdict = json.loads(done.out)
    assert (done.status, verdict["valid"]) == (78, False)
    (problem,) = verdict["problems"]
    assert (problem["where"], problem["key"]) == (f"{folder}/30-c.yaml:1", "listen.port")
    assert verdict["warnings"][0]["where"] == f"{folder}/20-b.yml"


def test_a_nodes_configuration_is_checked_with_its_model_files(ctl: Ctl, tmp_path: Path) -> None:
    file = tmp_path / "node.yaml"
    file.write_text("node_id: box\nmodels: [{model_id: m, path: /gone.gguf, roles: [r]}]\n")
    done = ctl("config", "check", "--program", "node", "--json", "--config", file)
    assert done.status == 0
    assert any("/gone.gguf" in each["message"] for each in json.loads(done.out)["warnings"])


def test_credentials_are_looked_for_where_systemd_keeps_them(tmp_path: Path) -> None:
    gateway = ConfigSource(program="gateway")
    assert daemon_environment(gateway, {"A": "b"}, tmp_path) == {"A": "b"}
    own = tmp_path / "rolemesh-gateway.service"
    own.mkdir()
    assert daemon_environment(gateway, {}, tmp_path) == {"CREDENTIALS_DIRECTORY": str(own)}
    given = {"CREDENTIALS_DIRECTORY": "/x"}
    assert daemon_environment(gateway, given, tmp_path) == given
    left = ConfigSource(program="node", config_dir=Path("/etc/rolemesh/node-left.d"))
    assert daemon_environment(left, {}, tmp_path) == {}
    named = tmp_path / "rolemesh-node-agent@left.service"
    named.mkdir()
    assert daemon_environment(left, {}, tmp_path) == {"CREDENTIALS_DIRECTORY": str(named)}


def test_the_verb_needs_a_verb(ctl: Ctl) -> None:
    assert ctl("config").status == 2
    assert ctl("config", "show", "--program", "llama").status == 2
