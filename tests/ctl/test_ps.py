import json
from typing import Any

from tests.ctl.conftest import Ctl
from tests.fakes.operator_api import OperatorApi


def request(request_id: str, **more: Any) -> dict[str, Any]:
    tree = {
        "request_id": request_id,
        "alias": "coder",
        "model": "m",
        "node": "gpubox",
        "instance": "gpu0",
        "client": "ci",
        "phase": "stream",
        "priority": "batch",
        "queue_position": None,
        "age_s": 12.0,
        "queued_s": 0.5,
        "attempts": 1,
        "path": "/v1/chat/completions",
        "streaming": True,
    }
    return tree | more


WAITING = request(
    "req-b", phase="queue", queue_position=2, node=None, instance=None, model=None,
    age_s=90.0, client="guest", alias="planner", attempts=0,
)  # fmt: skip


def test_the_oldest_stands_first(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET requests"] = {"requests": [request("req-a"), WAITING]}
    head, first, second = ask("ps").lines
    assert head.split()[0] == "REQUEST"
    assert first.split()[:6] == ["req-b", "guest", "planner", "batch", "queue", "2"]
    assert second.split() == [
        "req-a", "ci", "coder", "batch", "stream", "12", "s", "0.5", "s", "1",
        "gpubox,", "gpu0,", "m",
    ]  # fmt: skip


def test_by_key_they_are_counted(ask: Ctl, gateway: OperatorApi) -> None:
    both = [request("req-a"), request("req-c", age_s=1), WAITING]
    gateway.replies["GET requests?by=key"] = {"requests": both}
    assert ask("ps", "--by", "key").lines == [
        "KEY    RUNNING  WAITING  OLDEST  ALIASES",
        "ci           2        0    12 s  coder",
        "guest        0        1  1m 30s  planner",
    ]
    assert json.loads(ask("ps", "--by", "key", "--json").out) == {"requests": both}


def test_silence_is_said_beside_the_output(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET requests"] = {"requests": []}
    done = ask("ps")
    assert (done.status, done.out, done.err) == (0, "", "no request runs or waits\n")
