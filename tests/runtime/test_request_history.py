from datetime import UTC, datetime, timedelta
from typing import Any

from rolemesh.runtime.request_history import KEPT, TOGETHER, WIDTH, Flat, RequestHistory
from rolemesh.runtime.request_log import REASON_CHARACTERS, RequestLog, labels

CODER = labels("coder -> m on box", client="ci", alias="coder", role=None, node="box")


def write(log: RequestLog, request_id: str = "req-1", **changes: Any) -> None:
    values = {"total_ms": 12.34, "attempts": 1, "queue_ms": 0.0, "first_byte_ms": 5.55, **changes}
    log.write(CODER, request_id, 200, "done", **values)


def history(number: int) -> RequestHistory:
    log = RequestLog("rolemesh.test.history")
    for count in range(number):
        write(log, f"req-{count}")
    return log.history


def test_what_became_of_a_request_has_the_names_of_the_journals_fields() -> None:
    log = RequestLog("rolemesh.test.history")
    write(log)
    (found,) = log.history.find("req-1")
    ended = datetime.fromisoformat(found.pop("at"))
    assert abs(datetime.now(UTC) - ended) < timedelta(seconds=60)
    assert found == {
        "request_id": "req-1",
        "client": "ci",
        "alias": "coder",
        "node": "box",
        "status": 200,
        "phase": "done",
        "attempts": 1,
        "queue_ms": 0.0,
        "first_byte_ms": 5.5,
        "total_ms": 12.3,
    }


def test_requests_with_one_id_are_all_found_the_oldest_first() -> None:
    log = RequestLog("rolemesh.test.history")
    write(log, reason="it broke")
    write(log, "another")
    write(log)
    assert [each.get("reason") for each in log.history.find("req-1")] == ["it broke", None]
    assert log.history.find("nobody's") == []


def test_the_last_requests_are_remembered_and_no_more() -> None:
    most = history(KEPT + 2 * TOGETHER)
    assert most.find(f"req-{KEPT + 2 * TOGETHER - 1}")
    assert most.find(f"req-{3 * TOGETHER}")
    assert not most.find("req-0")


def test_a_long_reason_is_cut() -> None:
    log = RequestLog("rolemesh.test.history")
    write(log, reason="a" * 100_000)
    assert log.history.find("req-1")[0]["reason"] == "a" * REASON_CHARACTERS


def test_every_request_is_counted_once() -> None:
    log, counted = RequestLog("rolemesh.test.history"), list[str]()

    def count(flat: Flat) -> None:
        counted.extend(flat[1::WIDTH])

    log.history.count = count
    for number in range(TOGETHER + 10):
        write(log, f"req-{number}")
    assert len(counted) == TOGETHER
    log.history.count_new()
    log.history.count_new()
    for number in range(TOGETHER + 10, 2 * TOGETHER):
        write(log, f"req-{number}")
    assert counted == [f"req-{number}" for number in range(2 * TOGETHER)]
