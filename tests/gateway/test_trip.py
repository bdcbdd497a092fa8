import json
from dataclasses import replace
from typing import Any

import pytest

from rolemesh.config.settings import Timeouts
from rolemesh.gateway.routing_table import Candidate, Upstream
from rolemesh.gateway.trip import (
    Trip,
    is_crash,
    is_slots_busy,
    outbound,
    reply_fields,
    reply_lines,
)
from rolemesh.names import Alias, InstanceName
from rolemesh.relay.replies import Reply
from tests.gateway.builders import ADDRESS, candidate, target
from tests.gateway.trips import trip_alone

CHAT = "/v1/chat/completions"


def trip(**fields: str) -> Trip:
    """Return a request for coder."""
    made = trip_alone(CHAT, b'{"model": "coder"}', fields, 0.0)
    made.attempts = 2
    made.queue_s = 0.0304
    return made


def static(model: str | None = None) -> Candidate:
    """Return the candidate of a proxy."""
    url = "http://10.0.0.7:8100/deep"
    address = replace(ADDRESS, prefix="/deep")
    return Candidate(upstream=Upstream(name=url, address=address), model=model)


def sent(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
    return first, dict(line.split(": ", 1) for line in lines)


def test_a_node_is_asked_for_its_own_model_and_told_how_long_a_load_may_take() -> None:
    to = candidate("box", "qwen", instance=InstanceName("gpu1"))
    patient = replace(target(to), timeouts=Timeouts(load_wait_s=7.0))
    head, body = outbound(trip(accept="text/event-stream"), to, patient)
    first, fields = sent(head)
    assert first == "POST /v1/chat/completions HTTP/1.1"
    assert fields == {
        "Host": "10.0.0.7:8100",
        "Content-Type": "application/json",
        "X-RoleMesh-Instance": "gpu1",
        "X-RoleMesh-Load-Wait": "7",
        "Accept": "text/event-stream",
        "X-Request-Id": "id-1",
        "Content-Length": str(len(body)),
    }
    assert json.loads(body) == {"model": "qwen"}


def test_a_proxy_is_asked_below_its_prefix_and_told_nothing_of_loads() -> None:
    head, body = outbound(trip(), static(), target())
    first, fields = sent(head)
    assert first == "POST /deep/v1/chat/completions HTTP/1.1"
    assert {"X-RoleMesh-Load-Wait", "X-RoleMesh-Instance", "Accept"}.isdisjoint(fields)
    assert json.loads(body) == {"model": "coder"}


def test_the_clients_own_headers_stay_here() -> None:
    asked = trip(authorization="Bearer mine", cookie="a=b", **{"x-api-key": "mine"})
    head, _ = outbound(asked, static(), target())
    assert b"mine" not in head
    assert b"a=b" not in head


def as_fields(lines: bytes) -> tuple[tuple[str, str], ...]:
    pairs = (line.split(": ", 1) for line in lines.decode().splitlines())
    return tuple((name, value) for name, value in pairs)


@pytest.mark.parametrize("to", [candidate("box", "qwen"), static("theirs"), static()])
@pytest.mark.parametrize("hop", ["coder", "small"])
def test_lines_and_fields_say_the_same(to: Candidate, hop: str) -> None:
    made = trip()
    made.claim.alias = Alias(hop)
    told = reply_fields(made, to)
    assert as_fields(reply_lines(made, to)) == told
    assert dict(told)["X-RoleMesh-Node"] == to.upstream.name
    assert dict(told)["X-RoleMesh-Model"] == (to.model or hop)
    assert dict(told)["X-RoleMesh-Attempts"] == "2"
    assert dict(told)["X-RoleMesh-Queue-Ms"] == "30"
    assert dict(told).get("X-RoleMesh-Fallback") == (hop if hop != "coder" else None)


def test_a_name_with_a_line_break_stays_one_line() -> None:
    evil = candidate("box", "qwen\r\nX-Evil: 1")
    assert b"\r\nX-Evil" not in reply_lines(trip(), evil)
    fallen_back = trip()
    fallen_back.claim.alias = Alias("small")
    assert b"\r\nX-Evil" not in reply_lines(fallen_back, evil)
    head, _ = outbound(
        trip(), candidate("box", "m", instance=InstanceName("a\r\nX-Evil: 1")), target()
    )
    assert b"\r\nX-Evil" not in head


def refusal(status: int, body: Any) -> Reply:
    return Reply(status=status, body=body if isinstance(body, bytes) else json.dumps(body).encode())


@pytest.mark.parametrize(
    ("status", "body", "busy", "crash"),
    [
        (503, {"error": {"code": "slots_busy"}}, True, False),
        (502, {"error": {"code": "upstream_broke"}}, False, True),
        (500, {"error": {"code": "upstream_broke"}}, False, False),
        (502, {"error": {"code": "connect_failed"}}, False, False),
        (502, {"error": "upstream_broke"}, False, False),
        (502, {"error": None}, False, False),
        (502, [1], False, False),
        (502, b"<html>Bad Gateway</html>", False, False),
        (502, b"\xff", False, False),
        (502, b"", False, False),
        (502, b"[" * 100_000, False, False),
    ],
)
def test_what_a_node_says_of_itself_is_read_with_care(
    status: int, body: Any, busy: bool, crash: bool
) -> None:
    reply = refusal(status, body)
    assert is_slots_busy(reply) == busy
    assert is_crash(reply) == crash
