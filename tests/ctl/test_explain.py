import json
from typing import Any

from tests.ctl.conftest import Ctl
from tests.fakes.operator_api import OperatorApi

REPLY: dict[str, Any] = {
    "alias": "coder",
    "usable": True,
    "reason": "",
    "chosen": {"upstream": "gpubox", "model": "m", "instance": "gpu0"},
    "candidates": [
        {"upstream": "gpubox", "model": "m", "instance": "gpu0", "alias": "coder", "chosen": True,
         "why": "warm, least loaded", "warmth": "ready", "slots": 4, "in_flight": 1,
         "breaker": "closed"},
        {"upstream": "spare", "model": "m", "instance": None, "alias": "coder", "chosen": False,
         "why": "not asked", "warmth": "cold", "slots": None, "in_flight": 0, "breaker": "open"},
        {"upstream": "http://h", "model": "p", "instance": None, "alias": "planner",
         "chosen": False, "why": "fallback", "warmth": "ready", "slots": 1, "in_flight": 0,
         "breaker": "closed"},
    ],
    "queued": 0,
    "fallback": ["planner"],
}  # fmt: skip


def test_the_chosen_candidate_is_marked_and_the_others_have_their_why(
    ask: Ctl, gateway: OperatorApi
) -> None:
    gateway.replies["GET explain/coder"] = REPLY
    done = ask("explain", "coder")
    assert done.status == 0
    assert done.lines[:3] == [
        "coder: usable",
        "a request now goes to gpubox, gpu0, m",
        "fallback: planner",
    ]
    chosen, spare, fallback = done.lines[-3:]
    assert chosen.startswith("->  gpubox")
    assert chosen.endswith("warm, least loaded")
    assert spare.startswith("    spare")
    assert spare.endswith("not asked (breaker open)")
    assert "planner" in fallback


def test_where_nobody_has_a_slot_a_request_waits(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET explain/coder"] = REPLY | {"chosen": None, "queued": 2}
    assert ask("explain", "coder").lines[1:3] == ["a request now waits", "2 waiting already"]


def test_it_is_explained_for_a_key_by_its_name(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET explain/coder?key=ci"] = REPLY
    assert json.loads(ask("explain", "coder", "--key", "ci", "--json").out) == REPLY


def test_an_alias_that_is_not_usable_is_status_4(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET explain/coder"] = REPLY | {
        "usable": False,
        "reason": "no node announces the role",
        "chosen": None,
        "candidates": [],
    }
    done = ask("explain", "coder")
    assert done.status == 4
    assert done.lines[0] == "coder: not usable: no node announces the role"
    assert ask("explain", "coder", "--json").status == 4


def test_an_alias_that_does_not_exist_is_status_4_too(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.refuse("GET explain/nobody", 404, "The model 'nobody' does not exist")
    done = ask("explain", "nobody")
    assert (done.status, done.err) == (4, "rolemeshctl: The model 'nobody' does not exist\n")
