"""Log records for the journal in its own protocol, so that every field can be searched for.

One record is one datagram (systemd.io/JOURNAL_NATIVE_PROTOCOL). Nothing here blocks or raises:
what the journal cannot take at the moment waits in memory, up to a bound; beyond it records are
lost, and their number is reported once the journal takes records again.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio

JOURNAL_SOCKET: Final = Path("/run/systemd/journal/socket")

FIELDS: Final = "rolemesh_fields"
"""The attribute of a LogRecord with its fields: a mapping of lower-case names to values."""

EVENT: Final = "rolemesh_event"
"""The attribute of a LogRecord with its OperatorEvent."""

FIELD_PREFIX: Final = "ROLEMESH_"
RETRY_S: Final = 0.05
NEXT_RETRY_S: Final = 0.001
"""While the journal takes some: its queue may be as short as ten records."""

GATHER_S: Final = 0.01
GATHER_MAX: Final = 256
"""The records of requests are sent together: after so long, or when they are so many."""

TROUBLE_S: Final = 1.0
"""How long records may wait before that is worth a word in STATUS."""

MAX_WAITING_BYTES: Final = 8 * 1024 * 1024
LAST_WORDS_S: Final = 0.2
"""How long the end of the process may wait for the journal to take what is left."""

LinesOf = Callable[[tuple[Any, ...]], str]

_SEND_BUFFER_BYTES: Final = 8 * 1024 * 1024
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_GONE: Final = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE)
_NO_FIELDS: Final[Mapping[str, Any]] = {}
_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)


def priority(level: int) -> int:
    """Return the syslog priority of a level."""
    return next(value for floor, value in _PRIORITIES if level >= floor)


def value_text(value: Any) -> str:
    """Return a field's value as text."""
    return f"{value:.1f}" if isinstance(value, float) else str(value)


class RecordEncoder:
    """Makes datagrams of records; `constant` are fields that every record has."""

    def __init__(self, identifier: str, constant: Mapping[str, Any] = _NO_FIELDS) -> None:
        self._identifier = identifier
        self._constant = dict(constant)
        self._heads: dict[tuple[int, str], str] = {}
        self._tracebacks = logging.Formatter()

    def encode(self, record: logging.LogRecord) -> bytes:
        """Return the datagram of one record."""
        attributes = record.__dict__
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self._tracebacks.formatException(record.exc_info)
        fields = attributes.get(FIELDS, _NO_FIELDS)
        datagram = self.encode_message(record.levelno, record.name, message, fields)
        event = attributes.get(EVENT)
        if event is not None:
            datagram += f"MESSAGE_ID={event.value}\n{FIELD_PREFIX}EVENT={event.label}\n".encode()
        return datagram

    def encode_message(
        self, level: int, logger_name: str, message: str, fields: Mapping[str, Any]
    ) -> bytes:
        """Return the datagram of a message with these fields."""
        lines = [self.head(level, logger_name)]
        blobs: list[bytes] = []
        _add("MESSAGE", message, lines, blobs)
        for key, value in fields.items():
            _add(_field_name(key), value_text(value), lines, blobs)
        return "".join(lines).encode("utf-8", "backslashreplace") + b"".join(blobs)

    def head(self, level: int, logger_name: str) -> str:
        """Return what all records of one logger and level begin with; made once."""
        head = self._heads.get((level, logger_name))
        if head is None:
            lines: list[str] = [f"PRIORITY={priority(level)}\n"]
            blobs: list[bytes] = []
            _add("SYSLOG_IDENTIFIER", _one_line(self._identifier), lines, blobs)
            _add("LOGGER", _one_line(logger_name), lines, blobs)
            for key, value in self._constant.items():
                _add(_field_name(key), _one_line(value_text(value)), lines, blobs)
            head = self._heads[level, logger_name] = "".join(lines)
        return head


@cache
def _field_name(key: str) -> str:
    return FIELD_PREFIX + key.upper()


def _one_line(text: str) -> str:
    return text.replace("\n", " ")


def _add(name: str, text: str, lines: list[str], blobs: list[bytes]) -> None:
    """Add a field: as a line, or with its length in front so that no newline can forge another."""
    if "\n" in text:
        content = text.encode("utf-8", "backslashreplace")
        length = len(content).to_bytes(8, "little")
        blobs.append(b"%b\n%b%b\n" % (name.encode(), length, content))
    else:
        lines.append(f"{name}={text}\n")


class JournalSender:
    """Sends datagrams in order, without waiting; `waiting` and `lost` count the others."""

    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._is_connected = False
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self.lost = 0

    @property
    def waiting(self) -> int:
        """How many datagrams the journal is still to take."""
        return len(self._waiting)

    def send(self, datagram: bytes) -> None:
        """Send, or keep for `flush`, or lose; the order is kept."""
        if self._waiting:
            self.flush()
        if self._waiting or not self._try(datagram):
            self._keep(datagram)

    def send_all(self, datagrams: list[bytes]) -> None:
        """Send several, in order."""
        sent = 0
        if self._is_connected and not self._waiting:
            send = self._socket.send
            with contextlib.suppress(OSError):
                for datagram in datagrams:
                    send(datagram)
                    sent += 1
        for datagram in datagrams[sent:]:
            self.send(datagram)

    def flush(self) -> bool:
        """Send of what waits as much as the journal takes; tells whether that was any."""
        before = len(self._waiting)
        while self._waiting and self._try(self._waiting[0]):
            self._waiting_bytes -= len(self._waiting.popleft())
        return len(self._waiting) < before

    def close(self) -> None:
        """Send no more."""
        self.lost += len(self._waiting)
        self._waiting.clear()
        self._socket.close()

    def _keep(self, datagram: bytes) -> None:
        if self._waiting_bytes + len(datagram) > MAX_WAITING_BYTES:
            self.lost += 1
            return
        self._waiting.append(datagram)
        self._waiting_bytes += len(datagram)

    def _try(self, datagram: bytes) -> bool:
        """Send one; False asks to try again later."""
        try:
            if not self._is_connected:
                self._connect()
            self._socket.send(datagram)
        except OSError as err:
            if err.errno in (errno.EMSGSIZE, errno.ENOBUFS):
                return self._try_as_file(datagram)
            if err.errno in _GONE and self._is_connected:
                # A connection ends with the journal's socket; where that was, is another one.
                self._is_connected = False
                return self._try(datagram)
            return False
        return True

    def _connect(self) -> None:
        """Connect: it saves looking for the socket by its name for each record."""
        self._socket.connect(self._path)
        self._is_connected = True

    def _try_as_file(self, datagram: bytes) -> bool:
        """Send what is too large for a datagram as a sealed file in memory."""
        try:
            fd = os.memfd_create("journal-record", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:
            self.lost += 1
            return True
        with os.fdopen(fd, "wb", buffering=0) as file:
            try:
                file.write(datagram)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, "little"))
                self._socket.sendmsg([b""], [rights])
            except (BlockingIOError, ConnectionRefusedError):
                return False
            except OSError:
                self.lost += 1
        return True


class JournalHandler(logging.Handler):
    """The logging handler in front of a JournalSender."""

    def __init__(self, encoder: RecordEncoder, sender: JournalSender) -> None:
        super().__init__()
        self._encoder = encoder
        self._sender = sender
        self._gathered: list[tuple[str, LinesOf, tuple[Any, ...]]] = []
        self._lost_reported = 0
        self._trouble_since = ""
        self._trouble_at = 0.0
        self._retry: asyncio.TimerHandle | None = None

    @property
    def problem(self) -> str:
        """What is to be said in STATUS while the journal does not take everything, else ""."""
        unwritten = self._sender.lost - self._lost_reported + self._sender.waiting
        if not unwritten or time.monotonic() < self._trouble_at + TROUBLE_S:
            return ""
        return f"{unwritten} log records not written since {self._trouble_since}"

    @property
    def lost(self) -> int:
        """How many records could not be written."""
        return self._sender.lost

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; never blocks, never raises."""
        if self._gathered:
            self._send_gathered()
        try:
            datagram = self._encoder.encode(record)
        except Exception:  # noqa: BLE001 - a record that cannot be made must not end a request
            self._sender.lost += 1
        else:
            self._sender.send(datagram)
        self._settle()

    def write_soon(self, logger_name: str, lines_of: LinesOf, what: tuple[Any, ...]) -> None:
        """Send `lines_of(what)` at level INFO: whole lines `NAME=value`, which the caller answers for.

        Many at a time, as each alone would wake the journal up; nobody waits for their text to be made.
        To be called on the loop.
        """
        gathered = self._gathered
        gathered.append((logger_name, lines_of, what))
        if len(gathered) == 1:
            _loop().call_later(GATHER_S, self._send_gathered)
        elif len(gathered) == GATHER_MAX:
            self._send_gathered()

    def _send_gathered(self) -> None:
        with self.lock or contextlib.nullcontext():
            gathered, self._gathered = self._gathered, []
            head = self._encoder.head
            self._sender.send_all(
                [
                    (head(logging.INFO, name) + lines_of(what)).encode("utf-8", "backslashreplace")
                    for name, lines_of, what in gathered
                ]
            )
            self._settle()

    def close(self) -> None:
        """Give the journal a last moment to take what waits."""
        self._send_gathered()
        end = time.monotonic() + LAST_WORDS_S
        while self._sender.waiting and time.monotonic() < end:
            time.sleep(0.01)
            self._sender.flush()
        self._sender.close()
        super().close()

    def _settle(self, retry_s: float = RETRY_S) -> None:
        """See to what could not be sent: try again later, or say how much is lost."""
        sender = self._sender
        if sender.waiting:
            self._note_trouble()
            self._arm_retry(retry_s)
        elif sender.lost > self._lost_reported:
            self._note_trouble()
            self._report_lost()
        elif self._trouble_since:
            self._trouble_since = ""

    def _note_trouble(self) -> None:
        if not self._trouble_since:
            self._trouble_since = time.strftime("%H:%M:%S")
            self._trouble_at = time.monotonic()

    def _report_lost(self) -> None:
        lost = self._sender.lost - self._lost_reported
        text = f"{lost} log records could not be written since {self._trouble_since}"
        report = logging.LogRecord(__name__, logging.WARNING, "", 0, text, None, None)
        self._lost_reported += lost
        self._sender.send(self._encoder.encode(report))

    def _arm_retry(self, retry_s: float) -> None:
        """Try again soon, even if no further record comes."""
        if self._retry is None:
            # Outside an event loop: with the next record, or at the end.
            with contextlib.suppress(RuntimeError):
                self._retry = _loop().call_later(retry_s, self._try_again)

    def _try_again(self) -> None:
        with self.lock or contextlib.nullcontext():
            self._retry = None
            self._settle(NEXT_RETRY_S if self._sender.flush() else RETRY_S)


def _loop() -> "asyncio.AbstractEventLoop":
    # Imported here: a cold model waits for rolemesh-llama, which logs before it needs a loop.
    import asyncio  # noqa: PLC0415

    return asyncio.get_running_loop()
