"""The elements of a list as they were written; the members of an object are test_edit's."""

import json
import random
from typing import Any

import pytest

from rolemesh.relay import members
from rolemesh.relay.members import encoded, split_elements, split_members


@pytest.fixture(params=["msgspec", "standard library"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with both, as a distribution may have no msgspec."""
    if request.param == "standard library":
        monkeypatch.setattr(members, "msgspec", None)
    else:
        pytest.importorskip("msgspec")


@pytest.mark.parametrize(
    ("written", "elements"),
    [
        (b"[]", []),
        (b"[ \n]", []),
        (b"[1]", [b"1"]),
        (
            b'[ {"a" : 1} ,\t"x, ]\\"" ,[ [1,2] ], 1e400,-0.0 , null ]',
            [b'{"a" : 1}', b'"x, ]\\""', b"[ [1,2] ]", b"1e400", b"-0.0", b"null"],
        ),
        (b'["\\u00e9\xc3\xa9\\ud83d\\ude00"]', [b'"\\u00e9\xc3\xa9\\ud83d\\ude00"']),
        (b"[NaN, -Infinity]", [b"NaN", b"-Infinity"]),
    ],
)
def test_elements_are_as_they_were_written(written: bytes, elements: list[bytes]) -> None:
    whole = split_members(b'{"list":' + written + b"}")
    assert list(map(bytes, split_elements(whole["list"]))) == elements


def test_elements_of_any_list_are_found() -> None:
    rolls = random.Random(4)

    def value(depth: int) -> Any:
        kind = rolls.randrange(6 if depth else 4)
        if kind == 0:
            return rolls.choice([None, True, -1.5e-7, 12345678901234567890])
        if kind <= 3:
            return "".join(rolls.choices('a"\\,[]{}: \n\u00e9\U0001f600', k=rolls.randrange(9)))
        if kind == 4:
            return [value(depth - 1) for _ in range(rolls.randrange(4))]
        return {f"k{number}": value(depth - 1) for number in range(rolls.randrange(4))}

    for _ in range(200):
        elements = [value(3) for _ in range(rolls.randrange(6))]
        found = split_elements(encoded(elements))
        assert [json.loads(bytes(each)) for each in found] == elements


@pytest.mark.parametrize("written", [b'{"a":1}', b'"text"', b"7", b"null"])
def test_what_is_no_list_has_no_elements(written: bytes) -> None:
    with pytest.raises(ValueError, match="expected"):
        split_elements(split_members(b'{"x":' + written + b"}")["x"])
