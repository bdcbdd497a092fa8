import json

from tests.ctl.conftest import Ctl
from tests.fakes.operator_api import OperatorApi


def test_each_request_is_cancelled_and_one_that_is_gone_does_not_keep_the_others(
    ask: Ctl, gateway: OperatorApi
) -> None:
    for request_id in ("req-a", "req-c"):
        gateway.replies[f"DELETE requests/{request_id}"] = {"status": "cancelled"}
    done = ask("cancel", "req-a", "req-b", "req-c")
    assert done.status == 4
    assert done.lines == ["cancelled req-a", "cancelled req-c"]
    assert done.err == "rolemeshctl: no request req-b runs or waits\n"


def test_programs_get_both_lists(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["DELETE requests/req-a"] = {"status": "cancelled"}
    assert ask("cancel", "req-a").status == 0
    done = ask("cancel", "req-a", "req-b", "--json")
    assert json.loads(done.out) == {"cancelled": ["req-a"], "not_found": ["req-b"]}
    assert done.err == ""
