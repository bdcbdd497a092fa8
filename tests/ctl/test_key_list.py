import json
from pathlib import Path

from tests.ctl.conftest import Ctl
from tests.fakes.operator_api import OperatorApi

REPLY = {
    "keys": [
        {"name": "boss", "roles": None, "priority": None, "max_concurrent": None,
         "requests_per_minute": None, "admin": True, "running": 0, "requests": 12},
        {"name": "ci", "roles": ["critic", "coder"], "priority": "batch", "max_concurrent": 4,
         "requests_per_minute": 60, "admin": False, "running": 2, "requests": 99},
    ]
}  # fmt: skip


def test_the_gateway_says_what_runs(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET keys"] = REPLY
    assert ask("key", "list").lines == [
        "KEY   KIND    ROLES         PRIORITY  AT ONCE  A MINUTE  ADMIN  RUNNING  ENDED",
        "boss  client  any           -               -         -  yes          0     12",
        "ci    client  coder,critic  batch           4        60  -            2     99",
    ]
    assert json.loads(ask("key", "list", "--json").out) == REPLY


def test_files_say_who_set_each(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "auth:\n"
        "  client_api_keys: [hush]\n"
        "  clients:\n    ci: {key: hush-2, roles: [coder]}\n"
        "  nodes: {gpubox: {key: hush-3}}\n"
    )
    done = ctl("key", "list", "--directory", tmp_path)
    assert [line.split() for line in done.lines[1:]] == [
        ["client-dc8331bc", "client", "any", "-", "-", "-", "-", "in", "a", "list", "of", "keys"],
        ["ci", "client", "coder", "-", "-", "-", "-", f"{tmp_path}/a.yaml:4"],
        ["gpubox", "node", "any", "-", "-", "-", "-", f"{tmp_path}/a.yaml:5"],
    ]
    assert "hush" not in done.out
    assert len(ctl("key", "list", "--node", "--directory", tmp_path).lines) == 2


def test_a_configuration_that_is_refused_says_so(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lisen: 1\n")
    done = ctl("key", "list", "--directory", tmp_path)
    assert (done.status, done.out) == (78, "")
    assert "lisen: unknown key" in done.err
