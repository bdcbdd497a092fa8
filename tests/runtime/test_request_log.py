"""The record of a request: the same fields in the journal and on a terminal."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rolemesh.runtime.journal import FIELDS, JournalHandler, JournalSender, RecordEncoder
from rolemesh.runtime.request_log import RequestLog, labels

NAME = "rolemesh.test.requests"
CODER = labels("coder -> m on box", client="ci", alias="coder", role=None, node="box")


@pytest.fixture
def journal(short_path: Path) -> Iterator[socket.socket]:
    """Have the root logger write to a journal, whose socket this is."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    path = short_path / "journal"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        server.setblocking(False)
        handler = JournalHandler(RecordEncoder("gateway", {}), JournalSender(path))
        root.handlers[:] = [handler]
        root.setLevel(logging.INFO)
        try:
            yield server
        finally:
            root.handlers[:] = before
            root.setLevel(level)
            handler.close()


async def records_of(server: socket.socket, number: int) -> list[dict[str, str]]:
    """Return so many records, as far as their fields are lines."""
    records = []
    for _ in range(number):
        datagram = await asyncio.get_running_loop().sock_recv(server, 1 << 16)
        lines = [line.partition("=") for line in datagram.decode().splitlines()]
        records.append({name: value for name, equals, value in lines if equals})
    return records


def write(**changes: Any) -> None:
    values: dict[str, Any] = {"total_ms": 12.34, "attempts": 1, "queue_ms": 0.0, **changes}
    values.setdefault("first_byte_ms", 5.55)
    RequestLog(NAME).write(CODER, "req-1", 200, "done", **values)


async def test_a_usual_record_is_one_datagram_with_all_its_fields(journal: socket.socket) -> None:
    write()
    assert await records_of(journal, 1) == [
        {
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": "gateway",
            "LOGGER": NAME,
            "MESSAGE": "coder -> m on box: 200 in 12 ms",
            "ROLEMESH_CLIENT": "ci",
            "ROLEMESH_ALIAS": "coder",
            "ROLEMESH_NODE": "box",
            "ROLEMESH_ATTEMPTS": "1",
            "ROLEMESH_REQUEST_ID": "req-1",
            "ROLEMESH_STATUS": "200",
            "ROLEMESH_PHASE": "done",
            "ROLEMESH_QUEUE_MS": "0.0",
            "ROLEMESH_FIRST_BYTE_MS": "5.5",
            "ROLEMESH_TOTAL_MS": "12.3",
        }
    ]


async def test_records_of_both_kinds_keep_their_order(journal: socket.socket) -> None:
    write()
    write(first_byte_ms=None, reason="it broke")
    write()
    records = await records_of(journal, 3)
    assert [record.get("ROLEMESH_REASON") for record in records] == [None, "it broke", None]


async def test_a_line_break_in_a_name_forges_no_field(journal: socket.socket) -> None:
    forger = labels("a\nROLEMESH_STATUS=200", client="x\nROLEMESH_CLIENT=root")
    RequestLog(NAME).write(
        forger, "req-2", 401, "accept", total_ms=1.0, queue_ms=0.0, first_byte_ms=1.0
    )
    datagram = journal.recv(1 << 16)
    for name, text in (
        (b"MESSAGE", b"a\nROLEMESH_STATUS=200: 401 in 1 ms"),
        (b"ROLEMESH_CLIENT", b"x\nROLEMESH_CLIENT=root"),
    ):
        with_its_length = name + b"\n" + len(text).to_bytes(8, "little") + text + b"\n"
        assert with_its_length in datagram
        datagram = datagram.replace(with_its_length, b"")
    lines = datagram.decode().splitlines()
    assert [line for line in lines if line.startswith("ROLEMESH_STATUS")] == ["ROLEMESH_STATUS=401"]
    assert not [line for line in lines if line.startswith("ROLEMESH_CLIENT")]


async def test_elsewhere_it_is_a_log_record_with_the_same_fields(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, NAME):
        write(reason="why")
    (record,) = caplog.records
    assert record.getMessage() == "coder -> m on box: 200 in 12 ms"
    fields = getattr(record, FIELDS)
    assert (fields["request_id"], fields["alias"], fields["reason"]) == ("req-1", "coder", "why")
    assert "role" not in fields


async def test_below_the_threshold_nothing_is_written(journal: socket.socket) -> None:
    logging.getLogger().setLevel(logging.WARNING)
    write()
    logging.getLogger().setLevel(logging.INFO)
    write()
    assert len(await records_of(journal, 1)) == 1
