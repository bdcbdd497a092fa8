import json
from typing import Any

from tests.ctl.conftest import Ctl
from tests.fakes.operator_api import OperatorApi

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "pid": 42,
    "uptime_s": 4000,
    "config_generation": 3,
    "listening": ["127.0.0.1:8000", "[::1]:8000"],
    "default_model": "planner",
    "ready": True,
    "reason": "",
    "aliases": {"total": 3, "usable": 2},
    "nodes": [
        {
            "node_id": "gpubox",
            "state": "live",
            "base_url": "http://10.0.0.7:8100",
            "version": "0.1.0",
            "heard_s_ago": 2.5,
            "reason": "",
            "models": [
                {
                    "model_id": "coder-gguf",
                    "roles": ["coder"],
                    "state": "ready",
                    "usable": True,
                    "reason": "",
                    "slots": 4,
                    "slots_free": 1,
                    "in_flight": 3,
                },
                {"model_id": "big", "roles": [], "state": "failed", "usable": False,
                 "reason": "out of memory", "slots": None, "slots_free": None, "in_flight": 0},
            ],
            "instances": [{"instance": "gpu0", "state": "ready", "model_id": "coder-gguf"}],
            "gpus": [{"gpu": "gpu0", "name": "H200", "memory_total_mib": 1000,
                      "memory_used_mib": 700, "utilisation": 93}],
            "host": {},
        },
        {"node_id": "old", "state": "lost", "base_url": "http://10.0.0.8:8100", "version": "",
         "heard_s_ago": None, "reason": "silent for 47 s", "models": [], "instances": [],
         "gpus": [], "host": {}},
    ],
    "requests": {"running": 3, "queued": 1},
    "problems": ["the registry cannot be saved: disk full"],
}  # fmt: skip


def test_people_see_one_screen(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = STATUS
    assert ask("status").lines == [
        "RoleMesh gateway 0.1.0, pid 42, up 1h 6m, configuration 3",
        "  listening  127.0.0.1:8000, [::1]:8000",
        "  ready      yes (planner)",
        "  aliases    2 of 3 usable",
        "  requests   3 running, 1 waiting",
        "",
        "NODE    STATE  HEARD      MODELS  RUNNING  ADDRESS               VERSION  REASON",
        "gpubox  live   2.5 s ago  1/2           3  http://10.0.0.7:8100    0.1.0  -",
        "old     lost   never      0/0           0  http://10.0.0.8:8100        -  silent for 47 s",
        "problem: the registry cannot be saved: disk full",
    ]


def test_a_gateway_that_is_not_ready_says_why(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = STATUS | {"ready": False, "reason": "no default_model is set"}
    assert "  ready      no: no default_model is set" in ask("status").lines


def test_programs_get_the_gateways_own_object(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = STATUS
    assert json.loads(ask("status", "--json").out) == STATUS
