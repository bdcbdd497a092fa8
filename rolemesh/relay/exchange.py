"""One attempt: a request to one upstream, and the upstream's answer to the client.

The upstream's head is held back until the first body byte that is not an SSE comment, because
llama-server sends `200` when prefill starts. Up to there another attempt may still be made; from
there on bytes pass as they come, and a break is the client's to see.

An exchange is driven by what arrives, without a task; see `attempt` for who has to wait.
"""

from collections.abc import Callable
from math import inf
from typing import Final

from rolemesh.config.settings import Timeouts
from rolemesh.errors import (
    RequestTooSlow,
    StreamBroken,
    UpstreamBroke,
    UpstreamError,
    UpstreamTimeout,
)
from rolemesh.relay.client import ClientStream
from rolemesh.relay.events import EventLines, has_error
from rolemesh.relay.headers import chunk
from rolemesh.relay.members import Buffer
from rolemesh.relay.replies import Reply
from rolemesh.relay.response import (
    Framing,
    ResponseError,
    ResponseHead,
    ResponseReader,
    read_whole,
    whole_reply,
)
from rolemesh.relay.upstream import UpstreamConnection, UpstreamPool

HELD_LIMIT_BYTES: Final = 256 * 1024
"""How much of an answer is held before its first byte (comments), or of a refusal's body."""

Ended = Reply | UpstreamError | RequestTooSlow | None
"""What an attempt came to. None: the answer went to the client whole. A Reply: the upstream refused
with 5xx before the first byte, and the client has seen nothing. UpstreamBroke or UpstreamTimeout:
the client has seen nothing; StreamBroken, UpstreamTimeout or RequestTooSlow: it has the beginning.
"""
OnOver = Callable[["Exchange", Ended], None]


class Exchange:
    """The receiver of one attempt's answer.

    `timeouts` bound it, and `deadline`, the loop's time by which all must be over. `added` are whole
    header lines for the reply. `on_over` is called once, unless the exchange is cancelled.
    """

    # What most exchanges never set stands here.
    awaits_first_byte = True
    first_byte_at = 0.0
    due = inf
    _held = b""
    _reader: ResponseReader | None = None
    _decoded: bytearray | None = None
    _lines: EventLines | None = None
    _reframe: Callable[[bytes], bytes] | None = None
    _is_source = False
    _is_reply = False
    _silent = True
    _passed = b""
    _over = False

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
    ) -> None:
        self._pool = pool
        self._connection = connection
        self._client = client
        self._timeouts = timeouts
        self._deadline = deadline
        self._added = added
        self._on_over = on_over
        self.address = connection.address

    @property
    def found_dead(self) -> bool:
        """Tell whether the connection had been closed while it lay idle: a fresh one may do."""
        return self._connection.reused and self._silent

    def begin(self, head: bytes, body: Buffer) -> None:
        """Send a whole request."""
        connection, pool = self._connection, self._pool
        connection.receiver = self
        now = self._alive_at = pool.clock()
        self.due = min(self._deadline, now + self._timeouts.first_byte_s)
        pool.attempts.add(self)
        if connection.closed:
            self._break("the connection closed at once")
        else:
            pool.outbox.write_request(connection.transport, head, body)

    def cancel(self) -> None:
        """End it and close the upstream connection; nobody is told."""
        if not self._over:
            self._leave()

    # -- Receiver --------------------------------------------------------------------------

    def upstream_data(self, data: bytes) -> None:
        """Take bytes of the answer."""
        try:
            reader = self._reader
            if reader is None:
                self._silent = False
                whole = read_whole(data)
                if whole is not None:
                    self._relay_whole(*whole)
                    return
                reader = self._reader = ResponseReader()
            rest = self._take_head(reader, data) if self.awaits_first_byte else data
            if rest is None:
                return
            raw = reader.feed_body(rest)
        except ResponseError as err:
            self._break(str(err))
            return
        head = reader.head
        assert head is not None
        if self.awaits_first_byte:
            self._hold(head, raw)
        else:
            self._pass_on(raw)
        if reader.complete and not self._over:
            self._finish(head)

    def _take_head(self, reader: ResponseReader, data: bytes) -> bytes | None:
        """Take bytes up to the end of the head; returns those behind it, None while it is not whole."""
        head = reader.head
        if head is None:
            begun = reader.feed_head(data)
            if begun is None:
                return None
            head, data = begun
        elif self._lines or self._is_reply or not self._client.committed:
            return data
        self._prepare(head, reader)  # anew if its client was promised a stream meanwhile
        return data

    def upstream_closed(self, cause: Exception | None) -> None:
        """Learn that the upstream closed."""
        if cause is not None:
            self._break(str(cause))
            return
        reader = self._reader or ResponseReader()
        try:
            self._finish(reader.end())
        except ResponseError as err:
            self._break(str(err))

    def give_up(self) -> None:
        """Stop waiting for the first byte: the upstream is not heard of any more."""
        self._silent = False  # a fresh connection would not help
        self._break("not heard of any more")

    def _relay_whole(self, head: ResponseHead, body: bytes) -> None:
        """Relay an answer that has come in one piece, as most short ones do."""
        client = self._client
        self.awaits_first_byte = False
        now = self.first_byte_at = self._pool.clock()
        self._let_go(now, reuse=head.keeps_alive)
        if client.committed:
            client.send(whole_reply(head, body))
            self._on_over(self, None)
            return
        client.relay(
            head.status,
            b"%bX-Request-Id: %b\r\n%b%bContent-Length: %d\r\n%b\r\n%b"
            % (
                head.passed,
                client.request_id.encode(),
                client.added,
                self._added,
                len(body),
                b"" if client.keeps_alive else b"Connection: close\r\n",
                body,
            ),
        )
        self._on_over(self, None)

    def _prepare(self, head: ResponseHead, reader: ResponseReader) -> None:
        """Decide what has to be known of the body: nothing, where its bytes can just pass."""
        # A client that was promised a stream cannot be given anything else as it comes.
        out_of_place = self._client.committed and not head.is_event_stream
        if head.is_refusal or out_of_place:
            self._is_reply = True
            self._decoded = bytearray()
            reader.sink = self._decoded.extend
            return
        if self._client.http_minor == 0 and reader.framing is Framing.CHUNKED:
            self._decoded = bytearray()
            reader.sink = self._decoded.extend
            self._reframe = self._take_decoded
        elif self._client.http_minor == 1 and reader.framing is Framing.CLOSE:
            self._reframe = chunk
        if head.is_event_stream:
            self._lines = EventLines()
            reader.sink = self._lines.take if self._decoded is None else self._take_both

    def _hold(self, head: ResponseHead, raw: bytes) -> None:
        lines = self._lines
        if lines is None and not self._is_reply:
            if raw:
                self._release(head, raw)
            return
        self._held += raw
        if lines is not None and lines.has_content:
            held, self._held = self._held, b""
            self._release(head, held)
        elif len(self._held) > HELD_LIMIT_BYTES:
            self._break("nothing but comments" if lines else "the error reply is too large")

    def _release(self, head: ResponseHead, raw: bytes) -> None:
        """Write the head and what is there to the client: from here on the answer is its own."""
        client, reader = self._client, self._reader
        assert reader is not None
        if client.committed:
            if self._lines is None:
                self._break("what was to be a stream is something else")
                return
            if reader.framing is Framing.LENGTH and client.http_minor == 1:
                self._reframe = chunk
        self.awaits_first_byte = False
        now = self.first_byte_at = self._alive_at = self._pool.clock()
        begun = raw if self._reframe is None else self._reframe(raw)
        if not client.committed:
            begun = b"%bX-Request-Id: %b\r\n%b%b%b%b\r\n%b" % (
                head.passed,
                client.request_id.encode(),
                client.added,
                self._added,
                reader.framing_line(client.http_minor),
                b"" if client.keeps_alive else b"Connection: close\r\n",
                begun,
            )
        client.bytes_out = len(raw)
        client.begin(head.status, begun, self._frame_event if self._lines else None)
        if not reader.complete:
            self._is_source = True
            client.set_source(self._connection.transport)
            self.due = min(now + self._timeouts.idle_s, self._deadline)
            self._pool.attempts.add(self)

    def _pass_on(self, raw: bytes) -> None:
        lines = self._lines
        if lines is None:
            self._alive_at = self._pool.clock()
        elif lines.has_content:  # comments are no sign of progress
            lines.has_content = False
            self._alive_at = self._pool.clock()
        if self._reframe is not None:
            raw = self._reframe(raw)
        if raw:
            self._client.bytes_out += len(raw)
            self._client.write(raw)
            self._passed = raw

    def _take_decoded(self, _raw: bytes) -> bytes:
        assert self._decoded is not None
        taken = bytes(self._decoded)
        self._decoded.clear()
        return taken

    def _take_both(self, data: bytes) -> None:
        assert self._decoded is not None
        assert self._lines is not None
        self._decoded += data
        self._lines.take(data)

    def _frame_event(self, event: bytes) -> bytes | None:
        reader = self._reader
        if self._reframe is chunk:
            return chunk(event)
        if reader is None or reader.framing is Framing.LENGTH:
            return None
        if self._client.http_minor:
            return chunk(event) if reader.between_chunks else None
        return event

    def _finish(self, head: ResponseHead) -> None:
        if self._is_reply:
            reply = whole_reply(head, self._take_decoded(b""))
            if not head.is_refusal:
                self._client.send(reply)
            self._end(reply if head.is_refusal else None)
            return
        if self.awaits_first_byte:
            self._release(head, self._held)
        if self._reframe is chunk:
            self._client.write(b"0\r\n\r\n")
        self._client.end()
        self._end(None)

    def _break(self, what: str) -> None:
        name = str(self.address)
        kind = UpstreamBroke if self.awaits_first_byte else StreamBroken
        # A node says itself what became of its llama-server; two errors would be one too many.
        self._client.is_told = self._lines is not None and has_error(self._passed)
        self._end(kind(f"{name}: {what}", upstream=name))

    def _end(self, ended: Ended) -> None:
        if not self._over:
            self._leave()
            self._on_over(self, ended)

    def _leave(self) -> None:
        if self._is_source:
            self._client.set_source(None)
        reader = self._reader
        self._let_go(self._pool.clock(), reuse=reader is not None and reader.reusable)
        if reader is not None:
            reader.let_go()

    def _let_go(self, now: float, *, reuse: bool) -> None:
        """Let go of the upstream; its connection serves others, or is closed."""
        self._over = True
        self._pool.attempts.discard(self)
        if reuse:
            self._pool.give_back(self._connection, now)
        else:
            self._connection.abort()

    def check_time(self, now: float) -> None:
        """Fail if it is late, else say when to look again."""
        waiting = self.awaits_first_byte
        limit = "first_byte_s" if waiting else "idle_s"
        allowed = self._timeouts.first_byte_s if waiting else self._timeouts.idle_s
        if now >= self._deadline:
            limit = "total_s"
        elif now < self._alive_at + allowed:
            self.due = min(self._alive_at + allowed, self._deadline)
            return
        if limit == "idle_s" and self._client.is_stalled:
            self._end(RequestTooSlow(f"the client took nothing for {allowed:g} s (idle_s)"))
            return
        self._end(UpstreamTimeout.by(str(self.address), limit, allowed))
