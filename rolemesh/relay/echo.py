"""One attempt whose answer names the alias as its model, where the client's alias says `echo_model`.

Only the value of `model` changes, so a plain answer is held until it is whole and gets another
length, and a stream, whose events pass as their lines are whole, gets other chunks.
"""

from http import HTTPStatus
from typing import Final

from rolemesh.config.settings import Timeouts
from rolemesh.relay.assembly import REPLY_LIMIT_BYTES
from rolemesh.relay.client import ClientStream
from rolemesh.relay.events import EventLines
from rolemesh.relay.exchange import Exchange, OnOver
from rolemesh.relay.headers import chunk
from rolemesh.relay.members import encoded_name, join_members, split_members, written
from rolemesh.relay.response import Framing, ResponseHead, ResponseReader
from rolemesh.relay.upstream import UpstreamConnection, UpstreamPool

_NAMING: Final = b'"model"'
_HOLDERS: Final = ("response", "message")
"""Where the events of responses and of messages have the head of their answer."""


def renamed(document: bytes, name: str) -> bytes:
    """Return a JSON object with `name` as its model; anything else as it is.

    All that is not between the members of that object stays byte for byte.
    """
    if _NAMING not in document:
        return document
    try:
        members = split_members(document)
    except (ValueError, RecursionError):
        return document
    for holder in _HOLDERS:
        if holder in members and (value := bytes(members[holder])).startswith(b"{"):
            members[holder] = written(renamed(value, name))
    if "model" in members and bytes(members["model"]).startswith(b'"'):
        members["model"] = encoded_name(name)
    return join_members(members)


class EchoExchange(Exchange):
    """An exchange that puts `name` in the place of the answer's model.

    A plain answer of more than `limit_bytes` is broken off.
    """

    _whole: bytearray | None = None
    _begun_line = b""

    def __init__(
        self,
        pool: UpstreamPool,
        connection: UpstreamConnection,
        client: ClientStream,
        *,
        timeouts: Timeouts,
        deadline: float,
        added: bytes,
        on_over: OnOver,
        name: str,
        limit_bytes: int = REPLY_LIMIT_BYTES,
    ) -> None:
        super().__init__(
            pool,
            connection,
            client,
            timeouts=timeouts,
            deadline=deadline,
            added=added,
            on_over=on_over,
        )
        self._name = name
        self._limit_bytes = limit_bytes

    def _relay_whole(self, head: ResponseHead, body: bytes) -> None:
        super()._relay_whole(head, renamed(body, self._name))

    def _prepare(self, head: ResponseHead, reader: ResponseReader) -> None:
        super()._prepare(head, reader)
        if self._is_reply or head.status != HTTPStatus.OK:
            return
        if not head.is_event_stream:
            self._decoded, self._whole = bytearray(), bytearray()
            reader.sink = self._decoded.extend
        elif reader.framing is not Framing.LENGTH:  # of that kind nobody has been seen
            self._decoded, self._lines = bytearray(), EventLines()
            reader.sink = self._take_both
            self._reframe = self._take_lines

    # -- a plain answer --------------------------------------------------------------------

    def _hold(self, head: ResponseHead, raw: bytes) -> None:
        if self._whole is None:
            super()._hold(head, raw)
        elif raw:
            now = self.first_byte_at = self._pool.clock()
            self.awaits_first_byte = False
            self.due = min(now + self._timeouts.idle_s, self._deadline)
            self._pool.attempts.add(self)
            self._pass_on(raw)

    def _pass_on(self, raw: bytes) -> None:
        if self._whole is None:
            super()._pass_on(raw)
            return
        self._alive_at = self._pool.clock()
        self._whole += self._take_decoded(raw)
        if len(self._whole) > self._limit_bytes:
            self._break(f"the answer is larger than {self._limit_bytes} bytes")

    def _finish(self, head: ResponseHead) -> None:
        if self._whole is not None:
            self._write_whole(head, renamed(bytes(self._whole), self._name))
            return
        if self._reframe == self._take_lines:
            if self.awaits_first_byte:
                self._release(head, self._held)
            self._client.write(self._framed(self._begun_line))
            if self._client.http_minor:
                self._client.write(b"0\r\n\r\n")
        super()._finish(head)

    def _write_whole(self, head: ResponseHead, body: bytes) -> None:
        client = self._client
        client.bytes_out = len(body)
        begun = b"%bX-Request-Id: %b\r\n%b%bContent-Length: %d\r\n%b\r\n%b" % (
            head.passed,
            client.request_id.encode(),
            client.added,
            self._added,
            len(body),
            b"" if client.keeps_alive else b"Connection: close\r\n",
            body,
        )
        client.begin(head.status, begun, None)
        client.end()
        self._end(None)

    # -- a stream --------------------------------------------------------------------------

    def _take_lines(self, raw: bytes) -> bytes:
        """Return what has come in whole lines, framed for the client."""
        data = self._begun_line + self._take_decoded(raw)
        end = data.rfind(b"\n") + 1
        if not end and len(data) > self._limit_bytes:
            end = len(data)  # no event is so long
        self._begun_line = data[end:]
        lines = data[:end].split(b"\n")
        return self._framed(b"\n".join(map(self._renamed_line, lines)))

    def _renamed_line(self, line: bytes) -> bytes:
        if not line.startswith(b"data:") or _NAMING not in line:
            return line
        field, payload = line[:5], line[5:]
        said = payload.strip()
        return field + payload.replace(said, renamed(said, self._name), 1)

    def _framed(self, data: bytes) -> bytes:
        return chunk(data) if self._client.http_minor else data

    def _frame_event(self, event: bytes) -> bytes | None:
        if self._reframe != self._take_lines:
            return super()._frame_event(event)
        return self._framed(event)  # a line that has only begun is not passed on
