import json

from tests.ctl.conftest import Ctl
from tests.fakes.operator_api import OperatorApi

WARNING = {"where": "/c/a.yaml:1", "key": "x", "message": "doubtful"}


def test_warnings_are_told_and_the_generation(ask: Ctl, gateway: OperatorApi) -> None:
    reply = {"status": "reloaded", "generation": 4, "warnings": [WARNING]}
    gateway.replies["POST reload"] = reply
    done = ask("reload")
    assert (done.status, done.out) == (0, "reloaded: configuration 4 is in force\n")
    assert done.err == "warning: /c/a.yaml:1: x: doubtful\n"
    assert json.loads(ask("reload", "--json").out) == reply


def test_a_refusal_prints_every_problem_with_its_line(ask: Ctl, gateway: OperatorApi) -> None:
    problems = [
        {"where": "/c/a.yaml:2", "key": "listen.prot", "message": "unknown key"},
        {"where": "/c/b.yaml", "key": "", "message": "cannot be read"},
    ]
    gateway.refuse("POST reload", 422, "the configuration is refused", problems=problems)
    done = ask("reload")
    assert (done.status, done.out) == (78, "")
    assert done.err.splitlines() == [
        "/c/a.yaml:2: listen.prot: unknown key",
        "/c/b.yaml: cannot be read",
        "rolemeshctl: this configuration is refused; the one before it stays in force",
    ]
    as_json = ask("reload", "--json")
    assert as_json.status == 78
    assert json.loads(as_json.out)["error"]["problems"] == problems


def test_another_refusal_is_a_failure(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.refuse("POST reload", 403, "no admin key")
    assert ask("reload").status == 1
