import json

from tests.ctl.conftest import Ctl
from tests.fakes.operator_api import OperatorApi

REPLY = {
    "aliases": [
        {
            "alias": "coder",
            "type": "discovered",
            "role": "coder",
            "usable": True,
            "reason": "",
            "priority": "interactive",
            "fallback": ["planner"],
            "queued": 2,
            "running": 4,
            "candidates": [
                {
                    "upstream": "gpubox",
                    "model": "m",
                    "warmth": "warm",
                    "usable": True,
                    "reason": "",
                },
                {"upstream": "old", "model": "m", "warmth": "cold", "usable": False, "reason": "x"},
            ],
        },
        {
            "alias": "writer",
            "type": "proxy",
            "role": None,
            "usable": False,
            "reason": "http://127.0.0.1:8012 refuses connections",
            "priority": "default",
            "fallback": [],
            "queued": 0,
            "running": 0,
            "candidates": [],
        },
    ]
}


def test_each_alias_has_who_answers_it_or_why_nobody_does(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET aliases"] = REPLY
    head, coder, writer = ask("aliases").lines
    assert head.split()[:3] == ["ALIAS", "USABLE", "PRIORITY"]
    assert coder.split() == ["coder", "yes", "interactive", "4", "2", "gpubox:m", "planner", "-"]
    assert writer.endswith("-         http://127.0.0.1:8012 refuses connections")
    assert json.loads(ask("aliases", "--json").out) == REPLY


def test_no_alias_is_said_with_the_remedy(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET aliases"] = {"aliases": []}
    done = ask("aliases")
    assert (done.status, done.out) == (0, "")
    assert "add a file to /etc/rolemesh/gateway.d" in done.err
