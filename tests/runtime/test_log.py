import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from rolemesh.runtime import log
from rolemesh.runtime.log import fields, log_problem, setup_logging


@pytest.fixture(autouse=True)
def root_logger_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)
    for name in ("raiseExceptions", "_srcfile", "logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, name, getattr(logging, name))


def record(message: str, *args: object, level: int = logging.INFO, **extra: Any) -> str:
    """Return what the journal gets."""
    entry = logging.LogRecord("x", level, "x.py", 1, message, args, None)
    entry.__dict__.update(fields(**extra))
    return log._Formatter(for_journal=True).format(entry)


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.DEBUG, 7),
        (logging.INFO, 6),
        (logging.WARNING, 4),
        (logging.ERROR, 3),
        (logging.CRITICAL, 2),
    ],
)
def test_the_journal_gets_the_level_as_its_priority(level: int, priority: int) -> None:
    assert record("a %s", "b", level=level) == f"<{priority}>a b"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        (7, "7"),
        (1.25, "1.2"),
        (True, "True"),
        ("two words", "'two words'"),
        ("", "''"),
        ("line\nbreak", "'line\\nbreak'"),
        ("\x1b[31m", "'\\x1b[31m'"),
        ("\ud800", "'\\ud800'"),
    ],
)
def test_fields_follow_the_message_and_cannot_forge_a_line(value: object, text: str) -> None:
    assert record("said", key=value) == f"<6>said key={text}"


def test_fields_that_are_not_known_are_left_out() -> None:
    assert record("said", a=None, b=0) == "<6>said b=0"


def test_every_line_of_a_record_has_the_priority() -> None:
    assert record("a\nb", level=logging.ERROR) == "<3>a\n<3>b"


def test_an_exception_follows_its_message() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        _ = 1 / 0
    entry = logging.LogRecord("x", 40, "x.py", 1, "failed", (), raised._excinfo)
    lines = log._Formatter(for_journal=True).format(entry).splitlines()
    assert lines[0] == "<3>failed"
    assert lines[-1] == "<3>ZeroDivisionError: division by zero"
    assert all(line.startswith("<3>") for line in lines)


@pytest.mark.parametrize(
    ("wanted", "level"),
    [("debug", logging.DEBUG), ("ERROR", logging.ERROR), ("loud", logging.INFO)],
)
def test_the_environment_sets_the_threshold(
    wanted: str, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLEMESH_LOG_LEVEL", wanted)
    setup_logging()
    assert logging.getLogger().level == level


def test_people_get_time_and_level(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    setup_logging()
    logging.getLogger("any").warning("said", extra=fields(key=1))
    line = capsys.readouterr().err
    assert line.endswith(" WARNING said key=1\n")
    assert line[2] == line[5] == ":"


@pytest.fixture
def stderr_leads_to_the_journal(monkeypatch: pytest.MonkeyPatch, short_path: Path) -> Path:
    """Return where the journal's socket would be."""
    found = os.fstat(sys.stderr.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    monkeypatch.setattr(log, "JOURNAL_SOCKET", short_path / "socket")
    return short_path / "socket"


def test_the_journals_stream_gets_lines_where_its_socket_is_missing(
    capfd: pytest.CaptureFixture[str], stderr_leads_to_the_journal: Path
) -> None:
    setup_logging()
    logging.getLogger("any").warning("said", extra=fields(key=1))
    assert capfd.readouterr().err == "<4>said key=1\n"
    assert not stderr_leads_to_the_journal.exists()
    assert log_problem() == ""


def test_the_journal_gets_fields_where_stderr_leads_to_it(
    capfd: pytest.CaptureFixture[str], stderr_leads_to_the_journal: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(stderr_leads_to_the_journal))
        setup_logging(program="rolemesh-x", constant={"instance": "gpu0"})
        logging.getLogger("any").warning("said", extra=fields(key=1))
        sent = receiver.recv(4096).decode().splitlines()
        logging.getLogger().handlers[0].close()
    assert sent == [
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=rolemesh-x",
        "LOGGER=any",
        "ROLEMESH_INSTANCE=gpu0",
        "MESSAGE=said",
        "ROLEMESH_KEY=1",
    ]
    assert capfd.readouterr().err == ""
