import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from tests.ctl.conftest import Ctl
from tests.ctl.test_agents import node
from tests.fakes.operator_api import Lines, OperatorApi

PATH = "POST nodes/gpubox/node/models/org%2Fcoder/load"
FOLLOWED = f"{PATH}?wait_s=3600"
BEGUN = f"{PATH}?wait_s=0"
READY = {"model_id": "org/coder", "state": "ready", "instances": ["gpu1"]}


def said(state: str, progress: float | None = None, reason: str = "") -> dict[str, Any]:
    return {"state": state, "instance": "gpu1", "progress": progress, "reason": reason}


@pytest.fixture
def gateway(gateway: OperatorApi) -> OperatorApi:
    gateway.replies["GET status"] = {"nodes": [node("gpubox", "org/coder")]}
    return gateway


def test_a_load_is_told_line_by_line(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies[FOLLOWED] = Lines(
        [
            said("stopping", reason="planner leaves first"),
            *(said("loading", percent / 100) for percent in range(0, 100, 5)),
            READY,
        ]
    )
    done = ask("load", "org/coder", "--on", "gpu1")
    assert done.status == 0
    assert done.out.startswith("org/coder is ready on gpubox, gpu1 (")
    assert done.err.splitlines() == [
        "org/coder on gpu1: stopping: planner leaves first",
        *(f"org/coder on gpu1: loading {percent} %" for percent in range(0, 100, 10)),
    ]
    assert gateway.bodies[-1] == {"instance": "gpu1"}


def test_programs_get_the_last_line_alone(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies[FOLLOWED] = Lines([said("loading"), READY])
    done = ask("load", "org/coder", "--json")
    assert (json.loads(done.out), done.err) == (READY, "")
    assert gateway.bodies[-1] == {}
    gateway.replies[FOLLOWED] = READY
    assert json.loads(ask("load", "org/coder", "--json").out) == READY


def test_what_came_of_it_is_the_exit_status(ask: Ctl, gateway: OperatorApi) -> None:
    error = {"message": "'org/coder' failed to load: out of memory", "status": 503}
    gateway.replies[FOLLOWED] = Lines([said("loading"), {"error": error}])
    done = ask("load", "org/coder")
    assert (done.status, done.out) == (1, "")
    assert done.err.endswith(f"rolemeshctl: refused: {error['message']}\n")
    gateway.refuse(FOLLOWED, 503, "it needs 9.1 GiB; gpu0: gpu0 has 5.2 GiB free")
    done = ask("load", "org/coder")
    assert (done.status, "needs 9.1 GiB" in done.err) == (1, True)
    gateway.refuse(FOLLOWED, 404, "there is no instance 'gpu9' here")
    assert ask("load", "org/coder").status == 4
    assert ask("load", "nobody").status == 4


@pytest.mark.parametrize("end", [[], [None]])
def test_a_node_that_breaks_off_is_a_failure(
    ask: Ctl, gateway: OperatorApi, end: list[Any]
) -> None:
    gateway.replies[FOLLOWED] = Lines([said("loading"), *end])
    done = ask("load", "org/coder")
    assert done.status in {1, 3}
    assert done.out == ""


def test_a_load_may_be_begun_alone(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.refuse(BEGUN, 503, "'org/coder' is still loading", reason="loading")
    done = ask("load", "org/coder", "--no-wait")
    assert done.status == 0
    assert done.out.startswith("org/coder is loading on gpubox; `rolemeshctl models` shows")
    assert json.loads(ask("load", "org/coder", "--no-wait", "--json").out)["state"] == "loading"
    gateway.replies[BEGUN] = READY
    assert ask("load", "org/coder", "--no-wait").out == "org/coder is ready on gpubox\n"
    gateway.refuse(BEGUN, 503, "no instance can take it", reason="no_room")
    assert ask("load", "org/coder", "--no-wait").status == 1


@pytest.mark.parametrize(
    ("state", "says"), [("loading", "goes on loading"), ("waiting", "no load of org/coder had")]
)
def test_who_stops_waiting_is_told_what_becomes_of_the_load(
    gateway: OperatorApi, state: str, says: str
) -> None:
    gateway.replies[FOLLOWED] = Lines([said(state), threading.Event()])
    command = [sys.executable, "-m", "rolemesh.ctl.main", "load", "org/coder"]
    process = subprocess.Popen(
        [*command, "--url", gateway.url], stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stderr is not None
    with process:
        assert f"org/coder on gpu1: {state}" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert says in process.stderr.read()
    assert process.returncode == 130
