"""One plain reply out of the events of a stream, as llama-server itself would have given it; pure.

What all three APIs have in common: lines, bounds, errors, ends. What each of them says is read in
`choices` (chat and text completions), `messages` and `responses`.
"""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeVar

from rolemesh.relay.members import decoded

REPLY_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""How much text one reply may gather, and one event may be long."""

Tree = dict[str, Any]
_Kind = TypeVar("_Kind")


class AssemblyError(Exception):
    """The stream is not one of the API asked for, or is not whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the plain request would have been answered; the body is JSON."""

    status: int
    body: bytes


class Assembly(ABC):
    """Takes a stream piece by piece, wherever its pieces are cut."""

    def __init__(self, limit_bytes: int = REPLY_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._size = 0
        self._line = bytearray()
        self._name = b""
        self._done = False
        self._error: Answer | None = None

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; tell whether the answer grew by them.

        Comments and reports of progress in the prompt add nothing. Raises AssemblyError.
        """
        *ended, begun = data.split(b"\n")
        grew = False
        for line in ended:
            whole, self._line = self._line + line, bytearray()
            grew = self._take_line(bytes(whole.removesuffix(b"\r"))) or grew
        self._line += begun
        self._grow(0)
        return grew

    def end(self) -> Answer:
        """Take the end of the stream and return the answer; raises AssemblyError."""
        if self._error is not None:
            return self._error
        if not self._done:
            raise _not_whole()
        try:
            return Answer(status=HTTPStatus.OK, body=_encoded(self._plain_reply()))
        except (ValueError, RecursionError) as err:
            raise _malformed(err) from err

    # -- what each API says ----------------------------------------------------------------

    @abstractmethod
    def _take_event(self, event: Tree) -> bool:
        """Take an event that is no error; tell whether the answer grew by it."""

    @abstractmethod
    def _plain_reply(self) -> Tree:
        """Return the plain reply, now that the stream is done; AssemblyError if it cannot be."""

    # -- lines and events (HTML Living Standard, section 9.2; an event here is one line) -------

    def _take_line(self, line: bytes) -> bool:
        if not line.startswith(b"data:"):
            # Else a comment, the blank line behind an event, or a field of no account.
            if line.startswith(b"event:") or not line:
                self._name = line[6:].strip()
            return False
        if self._error is not None:
            return False  # what follows an error is of no account
        if self._done:
            msg = "an event after the end of the answer"
            raise AssemblyError(msg)
        payload = line[5:].strip()
        if payload == b"[DONE]":
            self._done = True
            return False
        try:
            return self._take_payload(payload)
        except (ValueError, RecursionError) as err:
            raise _malformed(err) from err

    def _take_payload(self, payload: bytes) -> bool:
        event = decoded(payload)
        if event is None:  # llama-server's first event when there are several choices
            return False
        event = expect(dict, event, "event")
        if "error" in event:
            self._error = Answer(status=_status_of(event["error"]), body=payload)
            return True
        if self._name == b"error":  # so says llama-server in a stream of messages
            self._error = Answer(status=_status_of(event), body=b'{"error":%b}' % payload)
            return True
        return self._take_event(event)

    def _grow(self, by: int) -> None:
        self._size += by
        if self._size + len(self._line) > self._limit_bytes:
            msg = f"the answer is larger than {self._limit_bytes} bytes"
            raise AssemblyError(msg)


def expect(kind: type[_Kind], value: Any, name: str) -> _Kind:
    """Return a value of the kind it has to be of; raises AssemblyError."""
    if not isinstance(value, kind):
        msg = f"{name}: expected {kind.__name__}, found {type(value).__name__}"
        raise AssemblyError(msg)
    return value


def _encoded(tree: Any) -> bytes:
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode()


def _status_of(error: Any) -> int:
    """Return the status that llama-server gives an error: its `code`, as in a plain reply."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and HTTPStatus.BAD_REQUEST <= code < 600:
        return code
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _not_whole() -> AssemblyError:
    return AssemblyError("the stream ended before the answer was whole")


def _malformed(err: Exception) -> AssemblyError:
    return AssemblyError(f"malformed event: {err}")
