import json
from typing import Any

from tests.ctl.conftest import Ctl
from tests.ctl.test_trace_records import TOLD
from tests.fakes.operator_api import OperatorApi

AT_NODE: dict[str, Any] = {
    "source": "gpubox",
    "fields": {
        "at": "2026-11-22T11:59:59.999+00:00", "request_id": "req-a", "status": 499,
        "phase": "stream", "path": "/v1/chat/completions", "instance": "gpu0",
        "total_ms": 1230.0, "reason": "the client left",
    },
}  # fmt: skip


def told(*records: Any, **unreachable: str) -> dict[str, Any]:
    silent = [{"node_id": name, "reason": reason} for name, reason in unreachable.items()]
    return {"request_id": "req-a", "records": list(records), "unreachable": silent}


def test_what_is_remembered_stands_in_the_order_of_time(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET trace/req-a"] = told(TOLD, AT_NODE, old="timed out")
    done = ask("trace", "req-a")
    assert done.status == 0
    at_node, at_gateway = done.lines
    assert at_node.split(maxsplit=3)[2:] == [
        "gpubox",
        "/v1/chat/completions: 499 in 1230.0 ms (ended in phase stream, instance gpu0, "
        "the client left)",
    ]
    assert at_gateway.endswith("gateway  request: 200 in 1234.0 ms (waited 0.5 ms, node gpubox)")
    assert "node old was not heard: timed out" in done.err


def test_programs_get_records_and_what_is_missing(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET trace/req-a"] = told(TOLD, old="timed out")
    tree = json.loads(ask("trace", "req-a", "--json").out)
    assert sorted(tree) == ["problems", "records", "request_id", "unreachable"]
    assert [each["source"] for each in tree["records"]] == ["gateway"]
    assert tree["unreachable"] == [{"node_id": "old", "reason": "timed out"}]


def test_a_request_that_nobody_remembers_is_status_4(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET trace/req-a"] = told()
    done = ask("trace", "req-a")
    assert (done.status, done.out) == (4, "")
    assert "nobody remembers a request req-a" in done.err
    assert ask("trace", "req-a", "--json").status == 4


def test_without_the_gateway_its_absence_is_what_is_told(ctl: Ctl) -> None:
    done = ctl("trace", "req-a", "--url", "unix:/none")
    assert (done.status, done.out) == (3, "")
    assert "no gateway runs on this host" in done.err


def test_what_is_no_request_id_is_a_mistake(ask: Ctl) -> None:
    assert ask("trace", "a b").status == 2
    assert ask("trace", "x" * 129).status == 2
