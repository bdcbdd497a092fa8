"""The request body: the few fields routing reads, and the edit that rewrites them in place.

Everything else passes byte for byte: values are located in the text and spliced, never
re-encoded, so numbers, escapes and unknown fields reach the upstream exactly as the client wrote
them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from json import decoder
from typing import Any, Final

from rolemesh.errors import BadRequest

MAX_PROMPTS: Final = 4096
_skip_whitespace = re.compile(r"[ \t\n\r]*").match
_decode_value = decoder.JSONDecoder().raw_decode
_decode_string = decoder.scanstring  # type: ignore[attr-defined]  # absent from the stubs


@dataclass(frozen=True, slots=True)
class _Member:
    """One member of the top-level object: where its value stands in the text."""

    key: str
    value: Any
    start: int
    end: int


class RequestBody:
    """A parsed request body; `model` is None when the client named none."""

    __slots__ = ("_members", "_text", "model", "stream")

    def __init__(self, text: str, members: tuple[_Member, ...]) -> None:
        self._text = text
        self._members = members
        model = self.get("model")
        if model is not None and not isinstance(model, str):
            msg = "model must be a string"
            raise BadRequest(msg, param="model")
        self.model: str | None = model
        self.stream = self.get("stream") is True

    @classmethod
    def parse(cls, body: bytes) -> "RequestBody":
        """Parse a body; raises BadRequest when it is not one JSON object in UTF-8."""
        try:
            text = body.decode()
            return cls(text, _members(text))
        except UnicodeDecodeError as err:
            msg = f"the request body is not UTF-8 (byte {err.start})"
            raise BadRequest(msg) from err
        except RecursionError as err:
            msg = "the request body is nested too deeply"
            raise BadRequest(msg) from err
        except BadRequest:
            raise
        except ValueError as err:
            msg = f"the request body is not valid JSON: {err}"
            raise BadRequest(msg) from err

    def get(self, key: str) -> Any:
        """Return a top-level value; of several with one key the last counts, as in json."""
        for member in reversed(self._members):
            if member.key == key:
                return member.value
        return None

    def slots(self, prompts_key: str | None) -> int:
        """Return how many slots the request takes: n x prompts, each at least 1.

        Raises BadRequest when it asks for more than MAX_PROMPTS at once.
        """
        choices = self.get("n")
        prompts = self.get(prompts_key) if prompts_key else None
        count = choices if isinstance(choices, int) and choices > 0 else 1
        if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int):
            count *= len(prompts)  # a list of ints is one prompt, given as tokens
        if count > MAX_PROMPTS:
            msg = (
                f"the request asks for {count} completions at once, at most {MAX_PROMPTS} are taken"
            )
            raise BadRequest(msg, param="n")
        return count

    def rewritten(self, model: str | None, defaults: Mapping[str, Any]) -> bytes:
        """Return the body to send upstream.

        `model` replaces the client's (None leaves it); `defaults` are added where the client said
        nothing.
        """
        present = {member.key for member in self._members}
        added = {key: value for key, value in defaults.items() if key not in present}
        if model is not None and "model" not in present:
            added["model"] = model
        named = [member.value for member in self._members if member.key == "model"]
        is_right = model is None or all(name == model for name in named)
        return self._spliced({} if is_right else {"model": model}, added)

    def with_members(self, members: Mapping[str, Any]) -> bytes:
        """Return the body with these top-level members, replaced or added; the rest as it came."""
        present = {member.key for member in self._members}
        added = {key: value for key, value in members.items() if key not in present}
        return self._spliced(members, added)

    def _spliced(self, replaced: Mapping[str, Any], added: Mapping[str, Any]) -> bytes:
        pieces: list[str] = []
        position = 0
        if added:
            position = self._text.index("{") + 1
            inserted = json.dumps(added, ensure_ascii=False)[1:-1]
            pieces.append(self._text[:position] + inserted + ("," if self._members else ""))
        for member in self._members:
            if member.key in replaced:
                value = json.dumps(replaced[member.key])
                pieces += (self._text[position : member.start], value)
                position = member.end
        pieces.append(self._text[position:])
        return "".join(pieces).encode()


def _members(text: str) -> tuple[_Member, ...]:
    """Locate the members of the top-level object (RFC 8259); raises ValueError on bad JSON."""
    position = _skip(text, 0)
    if not text.startswith("{", position):
        msg = "the request body must be a JSON object"
        raise BadRequest(msg)
    members: list[_Member] = []
    position = _skip(text, position + 1)
    if text.startswith("}", position):
        _expect_end(text, position + 1)
        return ()
    while True:
        member, position = _member(text, position)
        members.append(member)
        if text.startswith("}", position):
            _expect_end(text, position + 1)
            return tuple(members)
        position = _skip(text, _expect(text, position, ","))


def _member(text: str, position: int) -> tuple[_Member, int]:
    key, position = _decode_string(text, _expect(text, position, '"'), True)  # noqa: FBT003
    start = _skip(text, _expect(text, _skip(text, position), ":"))
    value, end = _decode_value(text, start)
    return _Member(key, value, start, end), _skip(text, end)


def _skip(text: str, position: int) -> int:
    match = _skip_whitespace(text, position)
    assert match is not None  # it matches nothing, too
    return match.end()


def _expect(text: str, position: int, wanted: str) -> int:
    if not text.startswith(wanted, position):
        msg = f"expected {wanted!r} at character {position}"
        raise ValueError(msg)
    return position + 1


def _expect_end(text: str, position: int) -> None:
    if _skip(text, position) != len(text):
        msg = f"extra data after the object at character {position}"
        raise ValueError(msg)
