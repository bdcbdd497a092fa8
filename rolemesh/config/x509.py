"""Until when a certificate is valid: the one thing of it that `ssl` does not tell of a file.

A certificate is DER (ITU-T X.690), laid out as RFC 5280 section 4.1 says: a sequence that begins
with the part that is signed, which holds version, serial number, signature algorithm, issuer and
validity, in this order.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

_INTEGER: Final = 0x02
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_YEAR_DIGITS: Final = {_UTC_TIME: 2, _GENERALIZED_TIME: 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """From when until when a certificate is valid."""

    begin: datetime
    end: datetime


def read_validity(der: bytes) -> Validity:
    """Return the validity of a certificate; raises ValueError for what is none."""
    (_, certificate), *_ = _elements(der)
    (_, signed), *_ = _elements(certificate)
    fields = [(tag, value) for tag, value in _elements(signed) if tag != _VERSION]
    if [tag for tag, _ in fields[:4]] != [_INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE]:
        msg = "not laid out as a certificate"
        raise ValueError(msg)
    begin, end = (_time(tag, value) for tag, value in _elements(fields[3][1]))
    return Validity(begin=begin, end=end)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element in `data`; raises ValueError."""
    position = 0
    while position < len(data):
        tag, length, position = data[position], *_length(data, position + 1)
        if position + length > len(data):
            msg = "cut off"
            raise ValueError(msg)
        yield tag, data[position : position + length]
        position += length


def _length(data: bytes, position: int) -> tuple[int, int]:
    """Return a length, and the position after it."""
    first = data[position : position + 1]
    if not first or first[0] < 0x80:
        return int.from_bytes(first), position + 1
    end = position + 1 + (first[0] & 0x7F)
    return int.from_bytes(data[position + 1 : end]), end


def _time(tag: int, value: bytes) -> datetime:
    # RFC 5280 section 4.1.2.5: both end with Z; years of two digits begin with 1950. Not by strptime:
    # it imports a module when it is first used, which an upgrade may have replaced by then.
    text, digits = value.decode("ascii"), _YEAR_DIGITS.get(tag, 0)
    if not digits or not re.fullmatch(rf"[0-9]{{{digits + 10}}}Z", text):
        msg = f"no time: {text!r}"
        raise ValueError(msg)
    year = int(text[:digits])
    if tag == _UTC_TIME:
        year += 1900 if year >= 50 else 2000
    month, day, hour, minute, second = (
        int(text[at : at + 2]) for at in range(digits, digits + 10, 2)
    )
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
