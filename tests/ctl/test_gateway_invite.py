import hashlib
import json
import shlex
from pathlib import Path

import pytest

from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import load_gateway
from rolemesh.config.settings import GatewaySettings
from rolemesh.ctl.local_address import outward_addresses
from tests.ctl.conftest import Ctl
from tests.fakes.operator_api import OperatorApi

OPEN = "listen: {host: 10.0.0.1}\nauth: {client_api_keys: [hush]}\naliases: {from_roles: true}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "gateway.d"
    folder.mkdir()
    (folder / "10-a.yaml").write_text(OPEN)
    return folder


@pytest.fixture
def invite(ctl: Ctl, folder: Path, gateway: OperatorApi, monkeypatch: pytest.MonkeyPatch) -> Ctl:
    """Run `rolemeshctl gateway invite` for a gateway that accepts everything."""
    gateway.replies["POST reload"] = {"status": "reloaded", "generation": 2, "warnings": []}
    monkeypatch.setenv("ROLEMESH_URL", gateway.url)
    return lambda *words: ctl("gateway", "invite", "--directory", folder, *words)


def settings(folder: Path) -> GatewaySettings:
    return load_gateway(ConfigSource(program="gateway", config_dir=folder), {}).settings


def only_ours(folder: Path) -> bool:
    return [each.name for each in folder.iterdir()] == ["10-a.yaml"]


def test_one_line_is_printed_and_only_the_digest_of_its_token_is_kept(
    invite: Ctl, folder: Path, gateway: OperatorApi
) -> None:
    done = invite()
    assert done.status == 0, done.err
    (line,) = done.lines
    command, _, token = line.rpartition(" ")
    assert command == "sudo rolemeshctl node join http://10.0.0.1:8000 --token"
    (node,) = settings(folder).auth.nodes
    assert node.digest == hashlib.sha256(token.encode()).digest()
    assert node.name.startswith("node-")
    assert not any(token in file.read_text() for file in folder.iterdir())
    assert token not in done.err
    assert done.err.startswith(f"{folder}/node-key-{node.name}.yaml: in force\n")
    assert gateway.asked == ["GET status", "POST reload"]


def test_a_node_may_be_given_its_name(invite: Ctl, folder: Path) -> None:
    assert invite("--name", "gpubox").out.endswith(" --name gpubox\n")
    assert [node.name for node in settings(folder).auth.nodes] == ["gpubox"]
    again = invite("--name", "gpubox")
    assert again.status == 1
    assert "there is a key 'gpubox' already" in again.err
    assert invite("--name", "a b").status == 2


def test_who_registered_without_a_key_is_named_by_the_first_invitation(
    invite: Ctl, gateway: OperatorApi
) -> None:
    states = {"demo": "live", "gpubox": "live", "old": "late"}
    nodes = [{"node_id": name, "state": state} for name, state in states.items()]
    gateway.replies["GET status"] = {"nodes": nodes}
    done = invite("--name", "gpubox")
    assert done.status == 0
    assert "warning: demo registered without a key, and is refused from now on" in done.err
    assert "without a key" not in invite("--name", "other").err


def test_for_programs(invite: Ctl, folder: Path) -> None:
    told = json.loads(invite("--name", "box", "--url", "https://llm.example/x/v1/", "--json").out)
    token = told.pop("token")
    assert told == {
        "name": "box",
        "url": "https://llm.example/x",
        "file": f"{folder}/node-key-box.yaml",
        "command": f"sudo rolemeshctl node join https://llm.example/x --token {token} --name box",
        "in_force": "in force",
    }


def test_a_wildcard_becomes_an_address_of_this_host(invite: Ctl, folder: Path) -> None:
    (folder / "10-a.yaml").write_text(OPEN.replace("10.0.0.1", "0.0.0.0"))
    done = invite()
    if outward_addresses():
        assert f" http://{outward_addresses()[0]}:8000 --token" in done.out
    else:
        assert (done.status, only_ours(folder)) == (1, True)
        assert "name one with --url" in done.err


def test_a_gateway_that_no_other_host_reaches_says_how_to_open_it(
    invite: Ctl, folder: Path
) -> None:
    (folder / "10-a.yaml").write_text("default_model: x\naliases: {from_roles: true}\n")
    done = invite()
    assert (done.status, only_ours(folder)) == (1, True)
    lines = done.err.splitlines()
    assert f"sudo rolemeshctl key add me --directory {folder}" in lines
    begin, end = lines.index(f"sudo tee {folder}/20-open.yaml <<'END'"), lines.index("END")
    (folder / "20-open.yaml").write_text("\n".join(lines[begin + 1 : end]) + "\n")
    (folder / "30-key.yaml").write_text("auth: {clients: {me: {key: hush}}}\n")
    hosts = settings(folder).listen.host
    assert hosts[0] == "127.0.0.1"
    assert len(hosts) == 2
    assert lines[end + 1].startswith("sudo rolemeshctl reload --url unix:")
    assert lines[-1].startswith("rolemeshctl: this gateway listens on 127.0.0.1:8000 only")
    assert "at http://127.0.0.1:8000 by a node on this host itself" in lines[-1]


def test_what_somebody_wrote_about_listening_is_theirs_to_edit(invite: Ctl, folder: Path) -> None:
    (folder / "10-a.yaml").write_text("listen: {host: '::1', port: 9}\nauth: {open: true}\n")
    done = invite()
    assert done.status == 1
    assert f"# {folder}/10-a.yaml:1 says where it listens. Edit it:" in done.err
    assert '#   listen: {host: ["::1", "' in done.err
    assert "key add" not in done.err
    assert "aliases: {from_roles: true}" in done.err


def test_the_advice_replaces_no_file_and_is_about_the_gateway_that_was_meant(
    invite: Ctl, folder: Path, gateway: OperatorApi
) -> None:
    (folder / "10-a.yaml").rename(folder / "20-open.yaml")
    (folder / "20-open.yaml").write_text("listen: {host: 127.0.0.1}\n")
    lines = invite().err.splitlines()
    assert f"sudo tee {folder}/21-open.yaml <<'END'" in lines
    assert f"sudo rolemeshctl key add me --directory {folder}" in lines
    assert f"sudo rolemeshctl reload --url {gateway.url}" in lines


def test_a_url_is_quoted_for_the_shell(invite: Ctl, folder: Path) -> None:
    done = invite("--url", "http://gw/$(id)")
    assert shlex.split(done.out)[4] == "http://gw/$(id)"
    assert "$(id)'" in done.out


def test_what_may_be_in_the_way_is_said(invite: Ctl, folder: Path) -> None:
    (folder / "10-a.yaml").write_text("default_model: x\nmodels: {x: {type: discovered}}\n")
    done = invite("--url", "https://llm.example")
    assert done.status == 0
    assert "`aliases: {from_roles: true}` makes every role an alias at once" in done.err
    assert "something must pass on https://llm.example to it" in done.err
    assert "node join --ca-file FILE" in done.err
    assert "must pass on" not in invite("--url", "http://127.0.0.1:8000").err


@pytest.mark.parametrize("url", ["gw", "ftp://gw", "http://gw?x=1"])
def test_what_is_no_url_is_a_mistake(invite: Ctl, folder: Path, url: str) -> None:
    assert (invite("--url", url).status, only_ours(folder)) == (2, True)


def test_what_the_gateway_refuses_is_taken_back(
    invite: Ctl, folder: Path, gateway: OperatorApi
) -> None:
    gateway.refuse("POST reload", 422, "refused", problems=[])
    done = invite()
    assert (done.status, done.out, only_ours(folder)) == (78, "", True)


def test_a_gateway_that_does_not_run_reads_it_later(
    ctl: Ctl, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROLEMESH_URL", raising=False)
    done = ctl("gateway", "invite", "--directory", folder)
    assert done.status == 0
    assert "in force once the gateway that reads it reloads (SIGHUP)" in done.err


def test_a_configuration_that_is_refused_is_mended_first(invite: Ctl, folder: Path) -> None:
    (folder / "10-a.yaml").write_text("lisen: 1\n")
    done = invite()
    assert (done.status, only_ours(folder)) == (78, True)
    assert f"{folder}/10-a.yaml:1: lisen: unknown key" in done.err
