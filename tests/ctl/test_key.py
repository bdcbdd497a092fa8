import hashlib
import json
from pathlib import Path

import pytest

from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import load_gateway
from rolemesh.config.settings import ClientKey, GatewaySettings, Priority
from rolemesh.names import Alias
from tests.ctl.conftest import Ctl, Done
from tests.fakes.operator_api import OperatorApi


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a configuration directory that listens for others, with a key that somebody wrote."""
    folder = tmp_path / "gateway.d"
    folder.mkdir(mode=0o700)
    (folder / "10-a.yaml").write_text(
        "listen: {host: 0.0.0.0}\nauth: {clients: {boss: {key: hush}}}\n"
        "models: {coder: {type: discovered}}\n"
    )
    return folder


@pytest.fixture
def key(ctl: Ctl, folder: Path, gateway: OperatorApi) -> Ctl:
    """Run `rolemeshctl key` in that directory, whose gateway accepts everything."""
    gateway.replies["POST reload"] = {"status": "reloaded", "generation": 2, "warnings": []}
    return lambda *words: ctl("key", *words, "--directory", folder, "--url", gateway.url)


def settings(folder: Path) -> GatewaySettings:
    return load_gateway(ConfigSource(program="gateway", config_dir=folder), {}).settings


def client(folder: Path, name: str) -> ClientKey:
    return next(each for each in settings(folder).auth.clients if each.name == name)


def untouched(folder: Path, done: Done, status: int) -> bool:
    return done.status == status and [each.name for each in folder.iterdir()] == ["10-a.yaml"]


def test_a_key_is_printed_once_and_only_its_digest_is_kept(
    key: Ctl, folder: Path, gateway: OperatorApi
) -> None:
    done = key(
        "add", "ci", "--roles", "coder", "--priority", "batch", "--max-concurrent", "4",
        "--requests-per-minute", "60", "--admin",
    )  # fmt: skip
    assert done.status == 0
    (made,) = done.lines
    assert made.startswith("rm-")
    assert len(made) == 46
    assert done.err == f"ci: {folder}/key-ci.yaml; in force\n"
    assert client(folder, "ci") == ClientKey(
        name="ci",
        digest=hashlib.sha256(made.encode()).digest(),
        roles=frozenset({Alias("coder")}),
        priority=Priority.BATCH,
        max_concurrent=4,
        requests_per_minute=60,
        admin=True,
    )
    assert not any(made in file.read_text() for file in folder.iterdir())
    assert gateway.asked == ["POST reload"]


def test_no_two_keys_are_alike(key: Ctl) -> None:
    assert key("add", "a").out != key("add", "b").out


def test_a_nodes_key_stands_among_the_nodes(key: Ctl, folder: Path) -> None:
    made = key("add", "gpubox", "--node").out.strip()
    (node,) = settings(folder).auth.nodes
    assert (node.name, node.digest) == ("gpubox", hashlib.sha256(made.encode()).digest())
    assert key("add", "x", "--node", "--admin").status == 2
    assert key("revoke", "gpubox").status == 4
    assert key("revoke", "gpubox", "--node").status == 0
    assert settings(folder).auth.nodes == ()


def test_who_registered_without_a_key_is_named_by_the_first_key_of_a_node(
    key: Ctl, gateway: OperatorApi
) -> None:
    gateway.replies["GET status"] = {"nodes": [{"node_id": "demo", "state": "live"}]}
    assert "without a key" not in key("add", "ci").err
    assert "warning: demo registered without a key" in key("add", "gpubox", "--node").err


def test_an_address_that_is_none_changes_nothing(ctl: Ctl, folder: Path) -> None:
    words = ("--directory", folder, "--url", "gw")
    assert untouched(folder, ctl("key", "add", "ci", *words), 2)
    assert ctl("key", "add", "ci", "--directory", folder).status == 0
    assert ctl("key", "revoke", "ci", *words).status == 2
    assert (folder / "key-ci.yaml").exists()


def test_a_name_that_is_taken_is_refused_with_its_place(key: Ctl, folder: Path) -> None:
    done = key("add", "boss")
    assert untouched(folder, done, 1)
    assert f"there is a key 'boss' already, at {folder}/10-a.yaml:2" in done.err


@pytest.mark.parametrize("name", ["../x", "a b", "", "-x", "x" * 65])
def test_a_name_that_is_none_is_a_mistake(key: Ctl, folder: Path, name: str) -> None:
    assert untouched(folder, key("add", "--admin", "--", name), 2)


def test_a_foreign_file_is_never_replaced(key: Ctl, folder: Path) -> None:
    foreign = folder / "key-ci.yaml"
    foreign.write_text("# a plan\n")
    done = key("add", "ci")
    assert (done.status, foreign.read_text()) == (1, "# a plan\n")
    assert "exists already" in done.err


def test_a_configuration_that_would_be_refused_changes_nothing(key: Ctl, folder: Path) -> None:
    (folder / "10-a.yaml").write_text("lisen: 1\n")
    done = key("add", "ci")
    assert untouched(folder, done, 78)
    assert done.out == ""
    assert f"{folder}/10-a.yaml:1: lisen: unknown key" in done.err
    assert done.err.endswith("the configuration would be refused: nothing was changed\n")


def test_what_the_gateway_refuses_is_taken_back(
    key: Ctl, folder: Path, gateway: OperatorApi
) -> None:
    problem = {"where": "/x", "key": "y", "message": "expected something else"}
    gateway.refuse("POST reload", 422, "refused", problems=[problem])
    done = key("add", "ci")
    assert untouched(folder, done, 78)
    assert done.out == ""
    assert "/x: y: expected something else" in done.err


def test_a_limit_is_changed_or_lifted_and_the_others_stay(key: Ctl, folder: Path) -> None:
    key("add", "ci", "--roles", "coder", "--max-concurrent", "4", "--admin")
    before = client(folder, "ci")
    done = key("limit", "ci", "--max-concurrent", "none", "--priority", "batch", "--no-admin")
    assert (done.status, done.out) == (0, f"ci changed: {folder}/key-ci.yaml; in force\n")
    after = client(folder, "ci")
    assert (after.digest, after.roles) == (before.digest, before.roles)
    assert (after.max_concurrent, after.priority, after.admin) == (None, Priority.BATCH, False)
    assert json.loads(key("limit", "ci", "--roles", "none", "--json").out) == {
        "name": "ci", "file": f"{folder}/key-ci.yaml", "priority": "batch",
    }  # fmt: skip
    assert key("limit", "ci").status == 2
    assert key("limit", "ci", "--max-concurrent", "0").status == 2


def test_a_change_that_the_gateway_refuses_is_taken_back(
    key: Ctl, folder: Path, gateway: OperatorApi
) -> None:
    key("add", "ci", "--max-concurrent", "4")
    before = (folder / "key-ci.yaml").read_text()
    gateway.refuse("POST reload", 422, "refused", problems=[])
    assert key("limit", "ci", "--max-concurrent", "5").status == 78
    assert key("revoke", "ci").status == 78
    assert (folder / "key-ci.yaml").read_text() == before


def test_revoking_removes_the_file(key: Ctl, folder: Path) -> None:
    key("add", "ci")
    done = key("revoke", "ci")
    assert done.out == f"ci revoked: {folder}/key-ci.yaml removed; in force\n"
    assert untouched(folder, key("revoke", "ci"), 4)


def test_the_last_key_of_an_open_address_is_not_revoked(key: Ctl, folder: Path) -> None:
    key("add", "ci")
    (folder / "10-a.yaml").write_text("listen: {host: 0.0.0.0}\n")
    assert key("revoke", "ci").status == 78
    assert (folder / "key-ci.yaml").exists()


def test_a_key_that_somebody_else_wrote_is_edited_by_them(key: Ctl, folder: Path) -> None:
    for done in (key("revoke", "boss"), key("limit", "boss", "--admin")):
        assert untouched(folder, done, 1)
        assert f"boss stands at {folder}/10-a.yaml:2, which rolemeshctl did not write" in done.err


def test_printing_only_writes_nothing_and_asks_nobody(
    key: Ctl, folder: Path, gateway: OperatorApi
) -> None:
    done = key("add", "ci", "--print-only")
    made, _, where, *content = done.lines
    assert untouched(folder, done, 0)
    assert where == f"# {folder}/key-ci.yaml"
    assert content[-1] == f'      key_sha256: "{hashlib.sha256(made.encode()).hexdigest()}"'
    told = json.loads(key("add", "ci", "--print-only", "--json").out)
    assert sorted(told) == ["content", "file", "key", "name"]
    assert gateway.asked == []


def test_without_a_gateway_the_key_waits_for_one(ctl: Ctl, folder: Path, short_path: Path) -> None:
    done = ctl("key", "add", "ci", "--directory", folder)
    assert (done.status, len(done.lines)) == (0, 1)
    assert "in force once the gateway that reads it reloads" in done.err
    gone = f"unix:{short_path}/none.sock"
    done = ctl("key", "add", "other", "--directory", folder, "--url", gone)
    assert done.status == 0
    assert "not in force yet (no gateway runs on this host" in done.err


def test_a_directory_that_is_not_there_is_named(ctl: Ctl, tmp_path: Path) -> None:
    done = ctl("key", "add", "ci", "--directory", tmp_path / "none")
    assert done.status in (1, 78)
    assert f"{tmp_path}/none" in done.err
    assert ctl("key", "add", "ci", "--directory", tmp_path, "--runtime").status == 2
