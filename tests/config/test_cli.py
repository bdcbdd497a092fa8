import argparse
from collections.abc import Mapping
from pathlib import Path

import pytest

from rolemesh import __version__
from rolemesh.config import cli
from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import load_gateway
from rolemesh.config.tree import Program
from tests.config.conftest import Write


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rolemesh-gateway")
    cli.add_daemon_options(parser)
    return parser.parse_args(arguments)


def source(
    *arguments: str, program: Program = "gateway", environ: Mapping[str, str] | None = None
) -> ConfigSource:
    return cli.source_from(parsed(*arguments), program=program, environ=environ or {})


# --- where the configuration is -------------------------------------------------------------


def test_without_options_the_drop_in_directories_are_read() -> None:
    assert source() == ConfigSource(program="gateway")


def test_options_say_where_the_configuration_is_and_paths_become_absolute() -> None:
    assert source("--config", "a.yaml", "--config-override", "/b.yaml") == ConfigSource(
        program="gateway", config=Path.cwd() / "a.yaml", override=Path("/b.yaml")
    )
    assert source("--config-dir", "d").config_dir == Path.cwd() / "d"


@pytest.mark.parametrize(
    ("arguments", "environ", "config", "directory", "override"),
    [
        ((), {}, None, None, None),
        ((), {"ROLE_MESH_CONFIG": "/e"}, "/e", None, None),
        (("--config", "/o"), {"ROLE_MESH_CONFIG": "/e"}, "/o", None, None),
        (("--config-dir", "/d"), {"ROLE_MESH_CONFIG": "/e"}, None, "/d", None),
        ((), {"ROLE_MESH_CONFIG_OVERRIDE": "/e"}, None, None, "/e"),
        (("--config-override", "/o"), {"ROLE_MESH_CONFIG_OVERRIDE": "/e"}, None, None, "/o"),
        (("--config", "/o"), {"ROLE_MESH_CONFIG_OVERRIDE": "/e"}, "/o", None, "/e"),
        ((), {"ROLE_MESH_CONFIG": "", "ROLE_MESH_CONFIG_OVERRIDE": ""}, None, None, None),
    ],
)
def test_the_environment_says_what_the_options_do_not(
    arguments: tuple[str, ...],
    environ: Mapping[str, str],
    config: str | None,
    directory: str | None,
    override: str | None,
) -> None:
    found = source(*arguments, environ=environ)
    paths = (found.config, found.config_dir, found.override)
    assert paths == tuple(None if p is None else Path(p) for p in (config, directory, override))


def test_a_file_and_a_directory_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed("--config", "a", "--config-dir", "b")
    assert ended.value.code == 2
    assert "not allowed with argument --config" in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed("--version")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"rolemesh-gateway {__version__}\n"


def test_host_port_and_staleness_from_outside_win_over_files(write: Write) -> None:
    path = write(
        "g.yaml", "listen: {host: 127.0.0.2, port: 81}\nnodes: {stale_after_s: 20}"
    )  # fmt: skip
    found = source(
        "--config", str(path), "--host", "127.0.0.3", "--host", "::1", "--port", "0",
        environ={"ROLE_MESH_NODE_STALE_AFTER_S": "47.5"},
    )  # fmt: skip
    settings = load_gateway(found, {}).settings
    assert settings.listen.host == ("127.0.0.3", "::1")
    assert settings.listen.port == 0
    assert settings.stale_after_s == 47.5


def test_staleness_is_no_matter_of_a_node() -> None:
    environ = {"ROLE_MESH_NODE_STALE_AFTER_S": "47"}
    assert source(program="node", environ=environ).overrides == ()


def test_another_program_is_given_the_same_files() -> None:
    given = source("--config", "a.yaml", "--config-override", "b.yaml", "--port", "1")
    arguments = cli.source_arguments(given)
    assert arguments == [f"--config={Path.cwd()}/a.yaml", f"--config-override={Path.cwd()}/b.yaml"]
    again = source(*arguments)
    assert (again.config, again.override) == (given.config, given.override)
    assert cli.source_arguments(source("--config-dir", "/d")) == ["--config-dir=/d"]
    assert cli.source_arguments(source()) == []


# --- the state directory --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        (("--state-dir", "/s"), {"STATE_DIRECTORY": "/a"}, "/s"),
        ((), {"STATE_DIRECTORY": "/a:/b", "ROLEMESH_STATE_DIRECTORY": "/c"}, "/a"),
        ((), {"ROLEMESH_STATE_DIRECTORY": "/c", "XDG_STATE_HOME": "/x"}, "/c"),
        ((), {"XDG_STATE_HOME": "/x"}, "/x/rolemesh/gateway"),
        ((), {}, str(Path.home() / ".local/state/rolemesh/gateway")),
    ],
)
def test_state_is_kept_where_the_first_of_several_says(
    arguments: tuple[str, ...], environ: Mapping[str, str], expected: str
) -> None:
    found = cli.state_directory(parsed(*arguments), program="gateway", environ=environ)
    assert found == Path(expected)


def test_a_node_keeps_its_state_under_the_name_of_its_agent() -> None:
    found = cli.state_directory(parsed(), program="node", environ={"XDG_STATE_HOME": "/x"})
    assert found == Path("/x/rolemesh/agent")


# --- --check --------------------------------------------------------------------------------


def test_check_sums_up_a_sound_gateway(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        "g.yaml",
        """
        auth: {client_api_keys: [a, b], node_api_keys: [c]}
        listen: {host: [127.0.0.1, "::1"]}
        models: {planner: {type: discovered}}
        """,
    )
    path.chmod(0o600)
    assert cli.check(source("--config", str(path)), {}) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out == (
        "OK: 1 file, 1 alias, 2 client keys, 1 node key, "
        "listening on 127.0.0.1:8000 and [::1]:8000\n"
    )


def test_check_sums_up_a_node_and_warns_of_files_that_are_not_there(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        "n.yaml",
        """
        node_id: box
        llama_server: {path: /gone/llama-server}
        models: [{model_id: m, path: /gone/m.gguf, roles: [r]}]
        instances: {gpu0: {model: m}, cpu0: {}}
        """,
    )
    assert cli.check(source("--config", str(path), program="node"), {}) == 0
    out, err = capsys.readouterr()
    assert out == (
        "OK: 1 file, node box, 1 model, 2 instances, no gateways, listening on 127.0.0.1:8100\n"
    )
    assert err == (
        f"warning: {path}:2: llama_server.path: expected a program, found /gone/llama-server: "
        "No such file or directory\n"
        f"warning: {path}:3: models.m.path: /gone/m.gguf cannot be read: "
        "No such file or directory\n"
    )


def test_check_prints_everything_that_is_wrong_and_fails(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("g.yaml", "models: {a: {type: proxy, proxy_ulr: x}}\ntimeouts: 5")
    assert cli.check(source("--config", str(path)), {}) == 78
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"warning: {path}:1: models.a.proxy_ulr: unknown key (ignored); "
        'did you mean "proxy_url"?\n'
        f"{path}:1: models.a.proxy_url: expected a URL such as http://127.0.0.1:8011, "
        "found nothing\n"
        f"{path}:2: timeouts: expected a mapping of timeouts in seconds, found 5\n"
        "2 problems: this configuration is refused\n"
    )


def test_check_tells_a_log_of_a_refusal_in_place_of_stderr(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("g.yaml", "timeouts: 5")
    told: list[str] = []
    status = cli.check(
        source("--config", str(path)), {}, refused=lambda error: told.append(str(error))
    )
    assert status == 78
    assert told[0].startswith(f"{path}:1: timeouts: expected a mapping")
    assert capsys.readouterr() == ("", "")


def test_check_names_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.check(source("--config", "/gone.yaml"), {}) == 78
    assert capsys.readouterr().err == (
        "/gone.yaml: cannot be read: No such file or directory\n"
        "1 problem: this configuration is refused\n"
    )


def test_check_never_prints_a_key(
    write: Write, capsys: pytest.CaptureFixture[str], open_directory: Path
) -> None:
    path = open_directory / "g.yaml"
    path.write_text(
        """
auth:
  client_api_keys: [sk-1, "sk 2", sk-3]
  clients: {ci: sk-4, cd: {key: sk-3}, ce: {key: [sk-5]}, cf: {key_file: sk-6},
            cg: {kye: sk-7, key_sha256: sk-8}}
  nodes: sk-9
models: {a: {type: proxy, proxy_url: "http://me:sk-10@h"}}
"""
    )
    path.chmod(0o644)
    assert cli.check(source("--config", str(path)), {}) == 78
    err = capsys.readouterr().err
    assert "sk-" not in err
    assert "sk 2" not in err
    assert err.count("\n") >= 9
