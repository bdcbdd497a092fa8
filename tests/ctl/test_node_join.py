import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import load_node
from rolemesh.config.settings import NodeSettings
from tests.ctl.conftest import Ctl, Done
from tests.fakes.operator_api import OperatorApi, operator_api

OURS = "http://127.0.0.1:8100"
KNOWN = {"node_id": "box", "state": "live", "reason": "", "base_url": OURS}
UNKNOWN = (404, {"error": {"message": "box is not registered here", "status": 404}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "node.d"
    folder.mkdir()
    (folder / "10-a.yaml").write_text("node_id: box\n")
    return folder


@pytest.fixture
def gateway() -> Iterator[OperatorApi]:
    """Return a gateway that lists the node box once it was asked for it."""
    with operator_api() as api:
        api.replies["GET /openapi.json"] = {"info": {"title": "RoleMesh gateway"}}
        api.replies["GET /v1/nodes/box"] = [UNKNOWN, UNKNOWN, KNOWN]
        yield api


@pytest.fixture
def join(ctl: Ctl, folder: Path, gateway: OperatorApi) -> Ctl:
    words = ("node", "join", gateway.url, "--directory", folder)

    def run(*more: object) -> Done:
        token = () if "--token-file" in more else ("--token", "rm-secret")
        return ctl(*words, *token, *more)

    return run


def settings(folder: Path) -> NodeSettings:
    return load_node(ConfigSource(program="node", config_dir=folder), {}).settings


def untouched(folder: Path) -> bool:
    return [each.name for each in sorted(folder.parent.rglob("*"))] == ["node.d", "10-a.yaml"]


def test_a_node_joins_and_returns_when_the_gateway_lists_it(
    join: Ctl, folder: Path, gateway: OperatorApi
) -> None:
    done = join()
    assert done.status == 0, done.err
    assert done.out == f"box has joined {gateway.url}, which reaches it at {OURS}\n"
    assert "Next, a model: sudo rolemeshctl model add FILE --role ROLE" in done.err
    (link,) = settings(folder).gateways
    assert (link.url, link.api_key) == (gateway.url, "rm-secret")
    assert settings(folder).advertise_url == OURS
    assert set(gateway.keys) == {"Bearer rm-secret"}


def test_the_key_is_in_a_file_of_its_own(join: Ctl, folder: Path) -> None:
    assert join().status == 0
    key, drop_in = folder.with_suffix(".key"), folder / "50-join.yaml"
    assert key.read_text() == "rm-secret\n"
    assert "rm-secret" not in drop_in.read_text()
    for file in (key, drop_in):
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert sorted(folder.parent.rglob("*")) == [folder, folder / "10-a.yaml", drop_in, key]


def test_a_token_in_a_file(join: Ctl, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("rm-other\n")
    assert join("--token-file", file).status == 0
    assert folder.with_suffix(".key").read_text() == "rm-other\n"
    file.write_text("two words\n")
    assert join("--token-file", file).status == 2
    assert join("--token-file", tmp_path / "none").status == 2
    assert join("--token-file", "/dev/zero").status == 2


def test_for_programs(join: Ctl, folder: Path, gateway: OperatorApi) -> None:
    assert json.loads(join("--json").out) == {
        "node_id": "box",
        "gateway": gateway.url,
        "advertise_url": OURS,
        "file": f"{folder}/50-join.yaml",
        "key_file": str(folder.with_suffix(".key")),
        "registered": True,
    }


def test_a_configuration_that_would_be_refused_leaves_nothing_behind(
    join: Ctl, folder: Path
) -> None:
    (folder / "10-a.yaml").write_text("node_id: box\nlisten: {port: high}\n")
    done = join()
    assert (done.status, untouched(folder)) == (78, True)
    assert f"{folder}/10-a.yaml:2: listen.port" in done.err


def test_a_file_that_contradicts_leaves_nothing_behind(
    join: Ctl, folder: Path, gateway: OperatorApi
) -> None:
    (folder / "10-a.yaml").unlink()
    mine = folder / "60-mine.yaml"
    mine.write_text(f"node_id: box\ngateways: [{{url: '{gateway.url}', api_key: mine}}]\n")
    done = join()
    assert done.status == 78
    assert "expected at most one of api_key and api_key_file, found both" in done.err
    mine.write_text("node_id: box\nadvertise_url: http://10.0.0.9:1\n")
    done = join()
    assert done.status == 1
    assert "sets advertise_url otherwise: nothing was changed" in done.err
    assert sorted(folder.parent.rglob("*")) == [folder, mine]


def test_another_node_of_that_name_is_in_the_way(
    join: Ctl, folder: Path, gateway: OperatorApi
) -> None:
    gateway.replies["GET /v1/nodes/box"] = {**KNOWN, "base_url": "http://10.0.0.8:8100"}
    done = join()
    assert (done.status, untouched(folder)) == (1, True)
    assert "a node box at http://10.0.0.8:8100 reports to" in done.err
    gateway.replies["GET /v1/nodes/other"] = [UNKNOWN, {**KNOWN, "node_id": "other"}]
    assert join("--name", "other").status == 0
    assert settings(folder).node_id == "other"


def test_the_same_gateway_may_be_joined_again_and_another_by_force(
    join: Ctl, folder: Path, gateway: OperatorApi, ctl: Ctl
) -> None:
    assert join().status == 0
    assert join("--listen", "127.0.0.1:8100").status == 0
    with operator_api() as other:
        other.replies = gateway.replies
        words = ("node", "join", other.url, "--directory", folder, "--token", "rm-two")
        done = ctl(*words)
        assert done.status == 1
        assert f"this host has joined {gateway.url}" in done.err
        assert ctl(*words, "--force").status == 0
        assert [link.url for link in settings(folder).gateways] == [other.url]


def test_a_gateway_that_never_lists_it_is_said_with_its_reason(
    join: Ctl, folder: Path, gateway: OperatorApi
) -> None:
    late = {**KNOWN, "state": "late", "reason": "stale: not heard for 47 s"}
    gateway.replies["GET /v1/nodes/box"] = late
    done = join("--wait", "0.01")
    assert done.status == 1
    assert "does not list box (stale: not heard for 47 s); what was written stays" in done.err
    assert (folder / "50-join.yaml").exists()


def test_a_key_that_was_lost_is_brought_back(join: Ctl, folder: Path) -> None:
    assert join().status == 0
    folder.with_suffix(".key").unlink()
    assert join().status == 0
    assert [link.api_key for link in settings(folder).gateways] == ["rm-secret"]


@pytest.mark.parametrize("content", [b"-----BEGIN PRIVATE KEY-----\n", b"\x30\x82\xff"])
def test_a_key_that_is_of_no_join_is_not_replaced(
    join: Ctl, folder: Path, gateway: OperatorApi, content: bytes
) -> None:
    key = folder.with_suffix(".key")
    key.write_bytes(content)
    done = join()
    assert (done.status, key.read_bytes(), gateway.asked) == (1, content, [])
    assert str(key) in done.err
    assert not (folder / "50-join.yaml").exists()


def test_a_key_of_no_join_is_replaced_by_force(join: Ctl, folder: Path) -> None:
    key = folder.with_suffix(".key")
    key.write_text("rm-old\n")
    assert join("--force").status == 0
    assert key.read_text() == "rm-secret\n"


def test_a_key_that_a_second_gateway_has_is_not_replaced(
    join: Ctl, folder: Path, gateway: OperatorApi
) -> None:
    """Only the drop-in was renamed, not the key."""
    assert join().status == 0
    (folder / "50-join.yaml").rename(folder / "40-other.yaml")
    done = join("--token-file", folder.with_suffix(".key"))
    assert done.status == 1
    assert "is not of a join that 50-join.yaml tells of" in done.err


def test_what_is_not_given_is_a_mistake(ctl: Ctl, folder: Path) -> None:
    assert ctl("node", "join", "http://127.0.0.1:1", "--directory", folder).status == 2
    assert ctl("node", "join", "gw", "--token", "x", "--directory", folder).status == 2
    words = ("node", "join", "http://127.0.0.1:1", "--directory", folder)
    assert ctl(*words, "--token", "").status == 2
    assert ctl(*words, "--token", "x", "--wait", "nan").status == 2
    assert untouched(folder)


def test_a_directory_that_may_not_be_written_is_named(ctl: Ctl, tmp_path: Path) -> None:
    done = ctl("node", "join", "http://127.0.0.1:1", "--token", "x", "--directory", tmp_path / "no")
    assert done.status == 1
    assert f"there is no directory {tmp_path}/no: is rolemesh-node-agent installed" in done.err
