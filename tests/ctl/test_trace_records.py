from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rolemesh.ctl.trace_records import (
    TraceRecord,
    engine_window,
    from_gateway,
    from_journal,
    in_order,
    merged,
)

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
REQUEST = {
    "MESSAGE": "coder by gpubox: 200 in 1234 ms",
    "SYSLOG_IDENTIFIER": "rolemesh-gateway",
    "ROLEMESH_REQUEST_ID": "req-a",
    "ROLEMESH_STATUS": "200",
    "ROLEMESH_PHASE": "done",
    "ROLEMESH_NODE": "gpubox",
    "ROLEMESH_ATTEMPTS": "1",
    "ROLEMESH_QUEUE_MS": "0.5",
    "ROLEMESH_TOTAL_MS": "1234.0",
}
TOLD: dict[str, Any] = {
    "source": "gateway",
    "fields": {
        "at": "2026-11-22T12:00:00.004+00:00",
        "request_id": "req-a",
        "status": 200,
        "phase": "done",
        "node": "gpubox",
        "attempts": 1,
        "queue_ms": 0.5,
        "total_ms": 1234.0,
    },
}


def at_instance(**fields: str) -> TraceRecord:
    return TraceRecord(at=NOON, source="rolemesh-node-agent", fields=fields)


def test_a_record_that_is_in_the_journal_and_remembered_is_shown_once() -> None:
    journal = from_journal(NOON, REQUEST)
    assert merged([journal], [from_gateway(TOLD)]) == [journal]


def test_records_of_two_daemons_are_two() -> None:
    other = {**TOLD, "source": "gpubox", "fields": {**TOLD["fields"], "total_ms": 1230.0}}
    journal = from_journal(NOON, REQUEST)
    assert merged([journal], [from_gateway(other)]) == [journal, from_gateway(other)]


def test_lines_that_name_the_request_are_kept_beside_its_record() -> None:
    line = from_journal(NOON, {"MESSAGE": "x", "ROLEMESH_REQUEST_ID": "req-a"})
    assert merged([line], [from_gateway(TOLD)]) == [line, from_gateway(TOLD)]
    assert line.source == "?"


def test_records_stand_in_the_order_of_time() -> None:
    late, early = (TraceRecord(at=NOON + timedelta(seconds=s), source="x") for s in (1, 0))
    timeless = TraceRecord(at=None, source="x")
    assert in_order([timeless, late, early]) == [early, late, timeless]


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-22T12:00:00"])
def test_a_time_that_cannot_be_read_is_none(text: str) -> None:
    told = {**TOLD, "fields": {**TOLD["fields"], "at": text}}
    assert from_gateway(told).at is None


def test_the_time_of_a_request_at_its_instance() -> None:
    window = engine_window(at_instance(instance="gpu0", total_ms="1000.0"))
    assert window is not None
    instance, since, until = window
    assert instance == "gpu0"
    assert since == NOON - timedelta(seconds=1.1)
    assert until == NOON + timedelta(seconds=0.1)


@pytest.mark.parametrize(
    "fields",
    [
        {"instance": "gpu0"},
        {"total_ms": "1.0"},
        {"instance": "gpu0", "total_ms": "long"},
        {"instance": "gpu0", "total_ms": "1e300"},
    ],
)
def test_a_record_that_does_not_say_has_no_such_time(fields: dict[str, str]) -> None:
    assert engine_window(at_instance(**fields)) is None


def test_programs_get_every_part() -> None:
    assert from_journal(NOON, REQUEST).to_json() == {
        "at": "2026-11-22T12:00:00.000000+00:00",
        "source": "rolemesh-gateway",
        "message": "coder by gpubox: 200 in 1234 ms",
        "fields": {
            "request_id": "req-a",
            "status": "200",
            "phase": "done",
            "node": "gpubox",
            "attempts": "1",
            "queue_ms": "0.5",
            "total_ms": "1234.0",
        },
        "inferred": False,
    }
