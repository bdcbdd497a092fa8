import json
from pathlib import Path

import pytest

from tests.ctl.conftest import Ctl
from tests.fakes.operator_api import operator_api


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "node.d"
    folder.mkdir()
    (folder / "10-a.yaml").write_text(
        "gateways: [{url: 'http://gw', api_key_file: /nowhere}]\n"
        "models:\n"
        "  tiny: {path: /srv/tiny.gguf, roles: [coder, critic], context_size: 2048, parallel: 2}\n"
    )
    return folder


def test_models_and_how_they_are(
    ctl: Ctl, folder: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    socket = short_path / "rolemesh" / "node" / "control.sock"
    socket.parent.mkdir(parents=True)
    model = {"model_id": "tiny", "usable": False, "state": "failed", "reason": "no such file"}
    with operator_api(socket) as agent:
        agent.replies["GET /v1/node"] = {"node_id": "box", "models": [model]}
        done = ctl("model", "list", "--directory", folder)
        told = json.loads(ctl("model", "list", "--directory", folder, "--json").out)
    assert done.status == 0
    assert done.lines[1].split() == [
        "tiny", "coder,critic", "failed", "2048", "2", "/srv/tiny.gguf",
        f"{folder}/10-a.yaml:3", "no", "such", "file",
    ]  # fmt: skip
    assert told["models"] == [
        {
            "model_id": "tiny",
            "roles": ["coder", "critic"],
            "path": "/srv/tiny.gguf",
            "context_size": 2048,
            "parallel": 2,
            "set_by": f"{folder}/10-a.yaml:3",
            "state": "failed",
            "usable": False,
            "reason": "no such file",
        }
    ]


def test_without_the_agent_the_files_are_shown(ctl: Ctl, folder: Path) -> None:
    done = ctl("model", "list", "--directory", folder)
    assert done.status == 0
    assert done.lines[1].split()[:3] == ["tiny", "coder,critic", "-"]
    assert "how they are is not known" in done.err


def test_without_a_model_it_says_what_brings_one(ctl: Ctl, tmp_path: Path) -> None:
    done = ctl("model", "list", "--directory", tmp_path)
    assert (done.status, done.out) == (0, "")
    assert "sudo rolemeshctl model add FILE --role ROLE" in done.err
