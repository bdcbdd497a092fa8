import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rolemesh.ctl.verbs import VERBS
from tests.ctl.conftest import Ctl
from tests.ctl.test_agents import node
from tests.ctl.test_aliases import REPLY
from tests.ctl.test_ps import request
from tests.fakes.operator_api import OperatorApi

SCRIPT = Path(__file__).parents[2] / "packaging" / "bash-completion" / "rolemeshctl"


def test_words_come_from_the_gateway(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET aliases"] = REPLY
    gateway.replies["GET status"] = {"nodes": [{"node_id": "gpubox"}]}
    gateway.replies["GET requests"] = {"requests": [request("req-a")]}
    gateway.replies["GET keys"] = {"keys": [{"name": "ci"}]}
    assert ask("complete", "aliases").lines == ["coder", "writer"]
    assert ask("complete", "nodes").lines == ["gpubox"]
    assert ask("complete", "requests").lines == ["req-a"]
    assert ask("complete", "keys").lines == ["ci"]


def test_words_come_from_nodes_too(ask: Ctl, gateway: OperatorApi) -> None:
    nodes = [node("one", "coder"), node("two", "coder", "planner", instances=("gpu0", "gpu1"))]
    gateway.replies["GET status"] = {"nodes": nodes}
    assert ask("complete", "models").lines == ["coder", "planner"]
    assert ask("complete", "instances").lines == ["gpu0", "gpu1"]
    assert ask("complete", "instances", "--node", "one").lines == ["gpu0"]
    places = ["one", "one/gpu0", "two", "two/gpu0", "two/gpu1"]
    assert ask("complete", "places").lines == places


def test_nothing_is_ever_complained_about(ask: Ctl, ctl: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET aliases"] = {"aliases": [{"strange": True}]}
    for done in (ask("complete", "aliases"), ctl("complete", "keys", "--url", "unix:/none")):
        assert (done.status, done.out, done.err) == (0, "", "")


def completed(*words: str, path: Path) -> list[str]:
    """Return what the script offers for a command line whose last word is being typed."""
    program = (
        f'source {SCRIPT}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _rolemeshctl; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", program, "bash", "rolemeshctl", *words],
        env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return a folder with the program rolemeshctl."""
    file = tmp_path / "bin" / "rolemeshctl"
    file.parent.mkdir()
    file.write_text(f'#!/bin/sh\nexec {sys.executable} -m rolemesh.ctl.main "$@"\n')
    file.chmod(0o755)
    return file.parent


def test_the_shell_is_offered_the_verbs(program: Path) -> None:
    assert completed("", path=program) == list(VERBS)
    assert completed("dr", path=program) == ["drain"]
    assert completed("node", "", path=program) == ["plan", "gpus", "join"]
    assert completed("config", "", path=program) == ["check", "cat", "delta", "show"]
    assert completed("key", "add", "ci", "--priority", "b", path=program) == ["batch"]


@pytest.mark.parametrize(
    "words", [[verb] for verb in VERBS if verb not in ("config", "key")]
    + [["node", what] for what in ("plan", "gpus")]
    + [["config", what] for what in ("check", "cat", "delta", "show")]
    + [["key", what] for what in ("add", "list", "limit", "revoke")],
    ids=" ".join,
)  # fmt: skip
def test_the_shell_is_offered_every_option(ctl: Ctl, program: Path, words: list[str]) -> None:
    usage = ctl(*words, "--help").out
    options = set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", usage, re.MULTILINE))
    options |= set(re.findall(r"^  --[a-z-]+, (--[a-z-]+)", usage, re.MULTILINE))
    assert options == set(completed(*words, "--", path=program))


def test_models_and_instances_are_offered_where_they_belong(
    program: Path, gateway: OperatorApi
) -> None:
    gateway.replies["GET status"] = {"nodes": [node("one", "coder")]}
    asks = ("--url", gateway.url)
    assert completed(*asks, "load", "", path=program) == ["coder"]
    assert completed(*asks, "load", "coder", "--on", "", path=program) == ["gpu0"]
    assert completed(*asks, "load", "coder", "--node", "", path=program) == ["one"]
    assert completed(*asks, "switch", "", path=program) == ["gpu0"]
    assert completed(*asks, "switch", "gpu0", "", path=program) == ["coder"]
    assert completed(*asks, "unload", "--node", "one", "", path=program) == ["coder", "gpu0"]
    assert completed(*asks, "drain", "o", path=program) == ["one", "one/gpu0"]


def test_names_come_from_the_gateway_and_are_never_carried_out(
    program: Path, gateway: OperatorApi, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    evil: dict[str, Any] = {"alias": f"$(touch${{IFS}}{trap})"}
    gateway.replies["GET aliases"] = {"aliases": [*REPLY["aliases"], evil]}
    words = completed("--url", gateway.url, "explain", "", path=program)
    assert words[:2] == ["coder", "writer"]
    assert words[2].startswith(r"\$\(touch")
    assert not trap.exists()
    assert completed("--url", gateway.url, "explain", "co", path=program) == ["coder"]
