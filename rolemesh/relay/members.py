"""The members of a JSON object as they were written: split, and joined again, values untouched.

A value is never decoded and encoded anew, so numbers, escapes and unknown fields stay exactly as
the client wrote them; of several members with one name the last counts, as in json. msgspec does
it where it is installed, at a twentieth of the cost; the standard library does it elsewhere, and
has the last word on what msgspec does not take.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from json import decoder
from typing import Any, Final

msgspec: Any
try:
    import msgspec
except ImportError:  # not every distribution has it
    msgspec = None

if msgspec is not None:
    _split = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
    _split_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
    _join = msgspec.json.Encoder().encode

Buffer = bytes | memoryview
"""A body, or a view of one."""

Members = dict[str, Any]
"""Names to values as written: bytes, or msgspec's like of them. Only this module makes them."""

_OPENING: Final = ord("[")
_REMEMBERED_BYTES: Final = 128
_remembered = lru_cache(maxsize=1024)(json.loads)
_skip_whitespace = re.compile(r"[ \t\n\r]*").match
_decode_value = decoder.JSONDecoder().raw_decode
_decode_string = decoder.scanstring  # type: ignore[attr-defined]  # absent from the stubs


def split_members(body: Buffer) -> Members:
    """Return the members of the object that `body` is; raises ValueError if it is none."""
    if msgspec is not None:
        try:
            if not _is_ascii(body):
                bytes(body).decode()  # msgspec takes on trust what it does not decode
            return _split(body)  # type: ignore[no-any-return]
        except (UnicodeDecodeError, msgspec.MsgspecError):
            pass  # the standard library says what is wrong, and where
    return {name: written(value) for name, value in _split_text(bytes(body).decode())}


def split_elements(member: Any) -> list[Any]:
    """Return the elements of the list that a member's value is, as they were written."""
    if msgspec is not None:
        try:
            return _split_list(member)  # type: ignore[no-any-return]
        except msgspec.MsgspecError:
            pass  # as in split_members
    return [written(value) for value in _split_text_list(bytes(member).decode())]


def join_members(members: Mapping[str, Any]) -> bytes:
    """Return the object with these members."""
    if msgspec is not None:
        try:
            return _join(members)  # type: ignore[no-any-return]
        except UnicodeEncodeError:
            pass  # a name holds half of a surrogate pair, which only an escape can write
    return b"{%b}" % b",".join(b"%b:%b" % (_encoded(name), members[name]) for name in members)


def written(value: bytes) -> Any:
    """Return a value that is JSON already as a member's value."""
    return msgspec.Raw(value) if msgspec is not None else value


def encoded(value: Any) -> Any:
    """Return a value as a member's value."""
    return written(_encoded(value))


@lru_cache(maxsize=1024)
def encoded_name(name: str) -> Any:
    """Return a model's name as a member's value."""
    return encoded(name)


def decoded(value: Any) -> Any:
    """Return what a member's value, or any JSON, means; raises ValueError if it is none."""
    if msgspec is not None:
        try:
            return msgspec.json.decode(value)
        except msgspec.MsgspecError:
            pass  # as in split_members
    return json.loads(bytes(value))


def decoded_word(member: Any) -> Any:
    """Return what a short value means; those of `model` and `stream` come again and again."""
    value = bytes(member)
    return _remembered(value) if len(value) <= _REMEMBERED_BYTES else decoded(value)


def is_list(member: Any) -> bool:
    """Tell whether a member's value is a list, without decoding it."""
    return memoryview(member)[0] == _OPENING


def _is_ascii(body: Buffer) -> bool:
    """Tell whether a body is all ASCII; of a view, all that it is a view of is looked at."""
    whole = body.obj if isinstance(body, memoryview) else body
    return isinstance(whole, bytes) and whole.isascii()


def _encoded(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def _split_text(text: str) -> Iterator[tuple[str, bytes]]:
    """Yield the members of the top-level object (RFC 8259); raises ValueError on bad JSON."""
    position = _skip(text, 0)
    if not text.startswith("{", position):
        msg = "it must be a JSON object"
        raise ValueError(msg)
    position = _skip(text, position + 1)
    if text.startswith("}", position):
        _expect_end(text, position + 1)
        return
    while True:
        name, position = _decode_string(text, _expect(text, position, '"'), True)  # noqa: FBT003
        start = _skip(text, _expect(text, _skip(text, position), ":"))
        _value, end = _decode_value(text, start)
        yield name, text[start:end].encode()
        position = _skip(text, end)
        if text.startswith("}", position):
            _expect_end(text, position + 1)
            return
        position = _skip(text, _expect(text, position, ","))


def _split_text_list(text: str) -> Iterator[bytes]:
    """Yield the elements of a list whose JSON is known to be good."""
    position = _skip(text, _expect(text, 0, "["))
    while not text.startswith("]", position):
        _value, end = _decode_value(text, position)
        yield text[position:end].encode()
        position = _skip(text, end)
        if text.startswith(",", position):
            position = _skip(text, position + 1)


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
