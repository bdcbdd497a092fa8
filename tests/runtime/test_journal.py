"""Records in the journal's own protocol, sent to a socket that plays the journal."""

import asyncio
import fcntl
import logging
import mmap
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rolemesh.runtime import journal
from rolemesh.runtime.journal import JournalHandler, JournalSender, RecordEncoder
from rolemesh.runtime.log import fields
from rolemesh.runtime.operator_events import OperatorEvent
from tests.lab.poll import eventually

MAX_DATAGRAM_BYTES = 1 << 20


def parse(datagram: bytes) -> dict[str, str]:
    """Read a record as the journal does; fails on anything that is no field."""
    found: dict[str, str] = {}
    while datagram:
        line, newline, datagram = datagram.partition(b"\n")
        assert newline
        name, equals, value = line.partition(b"=")
        if not equals:
            length, datagram = int.from_bytes(datagram[:8], "little"), datagram[8:]
            value, datagram = datagram[:length], datagram[length:]
            assert datagram[:1] == b"\n"
            datagram = datagram[1:]
        assert name.decode() not in found
        found[name.decode()] = value.decode()
    return found


class Journal:
    """Plays the journal at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(os.fspath(path))
        self.socket.setblocking(False)

    def read(self) -> list[dict[str, str]]:
        """Return what has arrived since the last call."""
        found: list[dict[str, str]] = []
        while True:
            try:
                content, ancillary, _, _ = self.socket.recvmsg(
                    MAX_DATAGRAM_BYTES, socket.CMSG_SPACE(4)
                )
            except BlockingIOError:
                return found
            found.append(parse(_from_file(ancillary) if ancillary else content))

    @contextmanager
    def reading(self) -> Iterator[list[dict[str, str]]]:
        """Read what arrives as soon as it does, for the length of the block."""
        arrived: list[dict[str, str]] = []
        loop = asyncio.get_running_loop()
        loop.add_reader(self.socket, lambda: arrived.extend(self.read()))
        try:
            yield arrived
        finally:
            loop.remove_reader(self.socket)

    def close(self) -> None:
        self.socket.close()
        self.path.unlink(missing_ok=True)


def _from_file(ancillary: list[tuple[int, int, bytes]]) -> bytes:
    fd = int.from_bytes(ancillary[0][2][:4], "little")
    sealed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == sealed  # else it is not taken
    with os.fdopen(fd, "rb") as file, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as content:
        assert file.tell() >= 0
        return content[:]


@pytest.fixture
def receiver(short_path: Path) -> Iterator[Journal]:
    made = Journal(short_path / "socket")
    yield made
    made.close()


@pytest.fixture
def handler(short_path: Path) -> Iterator[JournalHandler]:
    made = JournalHandler(
        RecordEncoder("rolemesh-test", {"instance": "gpu0"}), JournalSender(short_path / "socket")
    )
    yield made
    made.close()


def record(
    message: str, *args: object, level: int = logging.INFO, **extra: Any
) -> logging.LogRecord:
    entry = logging.LogRecord("rolemesh.some.module", level, "x.py", 1, message, args, None)
    entry.__dict__.update(fields(**extra))
    return entry


# --- what is sent -----------------------------------------------------------------------------


def test_a_record_has_its_message_its_origin_and_its_fields(
    handler: JournalHandler, receiver: Journal
) -> None:
    handler.handle(record("%s in %d ms", "done", 8, request_id="id-1", total_ms=8.04, gone=None))
    assert receiver.read() == [
        {
            "MESSAGE": "done in 8 ms",
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": "rolemesh-test",
            "LOGGER": "rolemesh.some.module",
            "ROLEMESH_INSTANCE": "gpu0",
            "ROLEMESH_REQUEST_ID": "id-1",
            "ROLEMESH_TOTAL_MS": "8.0",
        }
    ]


@pytest.mark.parametrize(
    ("level", "priority"), [(10, "7"), (20, "6"), (30, "4"), (40, "3"), (50, "2")]
)
def test_the_level_is_the_priority(
    handler: JournalHandler, receiver: Journal, level: int, priority: str
) -> None:
    handler.handle(record("said", level=level))
    assert receiver.read()[0]["PRIORITY"] == priority


@pytest.mark.parametrize(
    "text",
    [
        "two\nlines",
        "x\nPRIORITY=0\nROLEMESH_STATUS=200",
        "\n",
        "x\n\x05\x00\x00\x00\x00\x00\x00\x00",
        "\x1b[31m ümlaut \u2028",
        "",
    ],
)
def test_no_text_can_forge_a_field(handler: JournalHandler, receiver: Journal, text: str) -> None:
    handler.handle(record("%s", text, alias=text, status=404))
    (found,) = receiver.read()
    assert (found["MESSAGE"], found["ROLEMESH_ALIAS"]) == (text, text)
    assert (found["PRIORITY"], found["ROLEMESH_STATUS"]) == ("6", "404")


def test_what_is_no_unicode_is_escaped(handler: JournalHandler, receiver: Journal) -> None:
    handler.handle(record("a \ud800", alias="\udcff\n"))
    (found,) = receiver.read()
    assert (found["MESSAGE"], found["ROLEMESH_ALIAS"]) == ("a \\ud800", "\\udcff\n")


def test_an_operators_event_has_its_message_id(handler: JournalHandler, receiver: Journal) -> None:
    handler.handle(record("node box is back", event=OperatorEvent.NODE_BACK, node="box"))
    (found,) = receiver.read()
    assert found["MESSAGE_ID"] == OperatorEvent.NODE_BACK.value
    assert (found["ROLEMESH_EVENT"], found["ROLEMESH_NODE"]) == ("node-back", "box")


def test_an_exception_follows_its_message(handler: JournalHandler, receiver: Journal) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        _ = 1 / 0
    entry = record("failed", level=logging.ERROR)
    entry.exc_info = raised._excinfo
    handler.handle(entry)
    lines = receiver.read()[0]["MESSAGE"].splitlines()
    assert (lines[0], lines[-1]) == ("failed", "ZeroDivisionError: division by zero")


def test_a_message_too_large_for_a_datagram_arrives_all_the_same(
    handler: JournalHandler, receiver: Journal
) -> None:
    text = "long " * 4_000_000
    handler.handle(record("%s", text, request_id="id-1"))
    (found,) = receiver.read()
    assert (found["MESSAGE"], found["ROLEMESH_REQUEST_ID"]) == (text, "id-1")


def test_a_record_that_cannot_be_made_is_counted_and_harms_nobody(
    handler: JournalHandler, receiver: Journal
) -> None:
    handler.handle(record("%d", "no number"))
    handler.handle(record("next"))
    messages = [each["MESSAGE"] for each in receiver.read()]
    assert messages[0].startswith("1 log records could not be written since ")
    assert messages[1] == "next"


# --- what the journal cannot take -------------------------------------------------------------


async def test_20_000_records_arrive_in_order_with_a_receiver_that_reads(
    handler: JournalHandler, receiver: Journal
) -> None:
    with receiver.reading() as arrived:
        for number in range(20_000):
            handler.handle(record("done", request_id=str(number)))
            if number % 10 == 0:
                await asyncio.sleep(0)
        await eventually(lambda: len(arrived) == 20_000, what="all arrived")
    assert [each["ROLEMESH_REQUEST_ID"] for each in arrived] == list(map(str, range(20_000)))
    assert handler.problem == ""


async def test_a_full_socket_delays_records_and_holds_nobody_up(
    handler: JournalHandler, receiver: Journal
) -> None:
    begun = time.monotonic()
    for number in range(2000):
        handler.handle(record("done", request_id=str(number)))
    assert time.monotonic() - begun < 2
    with receiver.reading() as arrived:
        await eventually(lambda: len(arrived) == 2000, what="all arrived, with no further record")
    assert [each["ROLEMESH_REQUEST_ID"] for each in arrived] == list(map(str, range(2000)))


async def test_records_wait_for_a_journal_that_is_away_and_comes_back(
    short_path: Path, handler: JournalHandler, receiver: Journal
) -> None:
    handler.handle(record("before"))
    assert len(receiver.read()) == 1
    receiver.socket.close()  # refuses
    handler.handle(record("one"))
    receiver.path.unlink()  # is not there
    handler.handle(record("two"))
    again = Journal(short_path / "socket")
    try:
        await eventually(lambda: handler._sender.waiting == 0, what="all is sent")
        assert [each["MESSAGE"] for each in again.read()] == ["one", "two"]
    finally:
        again.close()


async def test_what_does_not_fit_in_memory_is_lost_and_counted_and_said_once(
    short_path: Path, handler: JournalHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MAX_WAITING_BYTES", 1000)
    monkeypatch.setattr(journal, "TROUBLE_S", 0.0)
    for _ in range(10):
        handler.handle(record("x" * 200))
    lost = handler._sender.lost
    assert 5 <= lost < 10
    assert handler.problem.startswith("10 log records not written since ")
    back = Journal(short_path / "socket")
    try:
        await eventually(lambda: handler.problem == "", what="the trouble is over")
        handler.handle(record("on it goes"))
        messages = [each["MESSAGE"] for each in back.read()]
    finally:
        back.close()
    reports = [each for each in messages if "could not be written" in each]
    assert len(reports) == 1
    assert reports[0].startswith(f"{lost} log records could not be written since ")
    assert messages[-1] == "on it goes"
    assert len(messages) == 10 - lost + 2


def test_the_end_of_the_process_gives_the_journal_a_last_moment(short_path: Path) -> None:
    handler = JournalHandler(RecordEncoder("x"), JournalSender(short_path / "socket"))
    handler.handle(record("last words"))
    receiver = Journal(short_path / "socket")
    try:
        handler.close()
        assert [each["MESSAGE"] for each in receiver.read()] == ["last words"]
    finally:
        receiver.close()


def test_a_journal_that_never_comes_does_not_hold_up_the_end(short_path: Path) -> None:
    handler = JournalHandler(RecordEncoder("x"), JournalSender(short_path / "socket"))
    handler.handle(record("last words"))
    begun = time.monotonic()
    handler.close()
    assert time.monotonic() - begun < 1
