"""One attempt whose answer is taken whole: a stream is assembled into the plain reply it makes.

Nothing goes to the client before the end, so whatever breaks on the way is UpstreamBroke, and the
answer is the Reply that the exchange ends with, whatever its status.
"""

from collections.abc import Callable
from http import HTTPStatus

from rolemesh.config.settings import Timeouts
from rolemesh.errors import UpstreamBroke
from rolemesh.relay.assembly import REPLY_LIMIT_BYTES, Assembly, AssemblyError
from rolemesh.relay.client import ClientStream
from rolemesh.relay.exchange import Exchange, OnOver
from rolemesh.relay.replies import JSON_TYPE, Reply
from rolemesh.relay.response import ResponseHead, ResponseReader, whole_reply
from rolemesh.relay.upstream import UpstreamConnection, UpstreamPool


class Collection(Exchange):
    """An exchange for a request that asks for a stream on behalf of a client that did not.

    `assembly` makes what puts the answer together; one that is no stream is taken as it came. The
    rest are the parameters of an Exchange.
    """

    _assembly: Assembly | None = None
    _body = b""

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
        assembly: Callable[[], Assembly],
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
        self._make_assembly = assembly

    def _relay_whole(self, head: ResponseHead, body: bytes) -> None:
        now = self.first_byte_at = self._pool.clock()
        self._let_go(now, reuse=head.keeps_alive)
        self._on_over(self, whole_reply(head, body))

    def _prepare(self, head: ResponseHead, reader: ResponseReader) -> None:
        self._decoded = bytearray()
        reader.sink = self._decoded.extend
        if head.is_event_stream and head.status == HTTPStatus.OK:
            self._assembly = self._make_assembly()

    def _hold(self, head: ResponseHead, raw: bytes) -> None:
        if not self._take(raw):
            return
        now = self.first_byte_at = self._pool.clock()
        self.awaits_first_byte = False
        self.due = min(now + self._timeouts.idle_s, self._deadline)
        self._pool.attempts.add(self)

    def _pass_on(self, raw: bytes) -> None:
        self._take(raw)

    def _take(self, raw: bytes) -> bool:
        """Take more of the answer; tells whether that was a sign of progress."""
        decoded = self._take_decoded(raw)
        try:
            grew = self._assembly.feed(decoded) if self._assembly else self._add(decoded)
        except AssemblyError as err:
            self._break(str(err))
            return False
        if grew:
            self._alive_at = self._pool.clock()
        return grew

    def _add(self, decoded: bytes) -> bool:
        self._body += decoded
        if len(self._body) > REPLY_LIMIT_BYTES:
            msg = f"the reply is larger than {REPLY_LIMIT_BYTES} bytes"
            raise AssemblyError(msg)
        return bool(decoded)

    def _finish(self, head: ResponseHead) -> None:
        if self._assembly is None:
            self._end(whole_reply(head, self._body))
            return
        try:
            answer = self._assembly.end()
        except AssemblyError as err:
            self._break(str(err))
        else:
            self._end(Reply(status=answer.status, body=answer.body, fields=(JSON_TYPE,)))

    def _break(self, what: str) -> None:
        name = self.address.name
        self._connection.abort()  # even after a whole response: this upstream cannot be trusted
        self._end(UpstreamBroke(f"{name}: {what}", upstream=name))
