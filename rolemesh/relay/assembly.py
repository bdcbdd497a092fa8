"""One plain reply out of the events of a stream, as llama-server itself would have given it; pure.

The events are those of `/v1/chat/completions` and `/v1/completions` (OpenAI's streaming API; the
plain form and what differs were read off llama-server 0.7.0). They are merged by shape, not by a
list of fields, so that what newer builds add passes too: text grows, lists with an `index` merge
by it, other lists grow, of anything else the last value counts.
"""

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeVar

from rolemesh.relay.members import decoded

REPLY_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""How much text one reply may gather, and one event may be long."""

_Tree = dict[str, Any]
_Kind = TypeVar("_Kind")

# Strings that are said once: should they come again, they do not grow.
_SAID_ONCE: Final = frozenset({"role", "id", "type"})


class AssemblyError(Exception):
    """The stream is not one of these two APIs, or is not whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the plain request would have been answered; the body is JSON."""

    status: int
    body: bytes


class _Text(list[str]):
    """A string that grows, as its pieces."""


class _Indexed(dict[int, _Tree]):
    """A list whose items are known by their `index`."""


class Assembly:
    """Takes a stream piece by piece, wherever its pieces are cut.

    A choice's own last event is followed by those with the numbers of its generation (`usage`,
    `timings`), which name no choice. A plain reply has the numbers of the first choice alone.
    """

    def __init__(self, limit_bytes: int = REPLY_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._size = 0
        self._line = bytearray()
        self._choices: dict[int, _Tree] = {}
        self._heads: dict[int, _Tree] = {}
        self._speaking = 0
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
        if not self._done or not self._choices:
            msg = "the stream ended before the answer was whole"
            raise AssemblyError(msg)
        try:
            return Answer(status=HTTPStatus.OK, body=self._body())
        except (ValueError, RecursionError) as err:
            raise _malformed(err) from err

    def _body(self) -> bytes:
        head = self._heads[min(self._choices)]
        if isinstance(head.get("object"), str):
            head["object"] = head["object"].removesuffix(".chunk")
        choices = [_plain_choice(self._choices[index]) for index in sorted(self._choices)]
        tree = {"choices": choices, **head}
        return json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode()

    # -- lines and events (HTML Living Standard, section 9.2; an event here is one line) -------

    def _take_line(self, line: bytes) -> bool:
        if not line.startswith(b"data:"):
            return False  # a comment, the blank line behind an event, or a field of no account
        try:
            return self._take_event(line[5:].strip())
        except (ValueError, RecursionError) as err:
            raise _malformed(err) from err

    def _take_event(self, payload: bytes) -> bool:
        if self._error is not None:
            return False  # what follows an error is of no account
        if self._done:
            msg = "an event after the end of the answer"
            raise AssemblyError(msg)
        if payload == b"[DONE]":
            self._done = True
            return False
        event = decoded(payload)
        if event is None:  # llama-server's first event when there are several choices
            return False
        event = _expect(dict, event, "event")
        if "error" in event:
            self._error = Answer(status=_status_of(event["error"]), body=payload)
            return True
        # A report of progress is no sign of an answer, but may come with the beginning of it that
        # is part of the prompt.
        is_report = event.pop("prompt_progress", None) is not None
        self._add(event)
        return not is_report

    # -- merging -----------------------------------------------------------------------------

    def _add(self, event: _Tree) -> None:
        for choice in _expect(list, event.pop("choices", []), "choices"):
            self._add_choice(_expect(dict, choice, "choice"))
        _update(self._heads.setdefault(self._speaking, {}), event)

    def _add_choice(self, part: _Tree) -> None:
        self._speaking = index = _expect(int, part.get("index"), "index")
        choice = self._choices.setdefault(index, {})
        delta, text = part.pop("delta", None), part.pop("text", None)
        _update(choice, part)
        if delta is not None:
            self._merge(choice.setdefault("message", {}), _expect(dict, delta, "delta"))
        if text is not None:
            self._merge(choice, {"text": _expect(str, text, "text")})

    def _merge(self, whole: _Tree, part: _Tree) -> None:
        for key, value in part.items():
            old = whole.get(key)
            if isinstance(value, str) and key not in _SAID_ONCE:
                if not isinstance(old, _Text):
                    whole[key] = old = _Text()
                old.append(value)
                self._grow(len(value))
            elif isinstance(value, dict):
                if not isinstance(old, dict):
                    whole[key] = old = {}
                self._merge(old, value)
            elif isinstance(value, list):
                whole[key] = self._merged_list(old, value)
            elif old is None or (value is not None and key not in _SAID_ONCE):
                whole[key] = value

    def _merged_list(self, old: Any, value: list[Any]) -> Any:
        if not all(isinstance(item, dict) and isinstance(item.get("index"), int) for item in value):
            self._grow(len(json.dumps(value)))
            return [*(old if isinstance(old, list) else ()), *value]
        whole = old if isinstance(old, _Indexed) else _Indexed()
        for item in value:
            self._merge(whole.setdefault(item.pop("index"), {}), item)
        return whole

    def _grow(self, by: int) -> None:
        self._size += by
        if self._size + len(self._line) > self._limit_bytes:
            msg = f"the answer is larger than {self._limit_bytes} bytes"
            raise AssemblyError(msg)


def _update(whole: _Tree, part: _Tree) -> None:
    """Let the last value count that is not null."""
    whole.update(
        (key, value) for key, value in part.items() if value is not None or key not in whole
    )


def _plain_choice(choice: _Tree) -> _Tree:
    """Return one choice in plain form."""
    plain: _Tree = _plain(choice)
    if "message" in plain:
        said = {key: value for key, value in plain["message"].items() if value is not None}
        # The event that says the role is left out when the first token is no whole character; and
        # content is null only in a stream, whose first event says so.
        plain["message"] = {"role": "assistant", "content": "", **said}
    return plain


def _plain(node: Any) -> Any:
    """Return what was gathered as JSON types."""
    if isinstance(node, _Text):
        return "".join(node)
    if isinstance(node, _Indexed):
        return [_plain(node[index]) for index in sorted(node)]
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return node


def _expect(kind: type[_Kind], value: Any, name: str) -> _Kind:
    if not isinstance(value, kind):
        msg = f"{name}: expected {kind.__name__}, found {type(value).__name__}"
        raise AssemblyError(msg)
    return value


def _status_of(error: Any) -> int:
    """Return the status that llama-server gives an error: its `code`, as in a plain reply."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and HTTPStatus.BAD_REQUEST <= code < 600:
        return code
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _malformed(err: Exception) -> AssemblyError:
    return AssemblyError(f"malformed event: {err}")
