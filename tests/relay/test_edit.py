"""The edit is judged by what stays: every byte that routing has no business with."""

import json
import random
from typing import Any

import pytest

from rolemesh.errors import BadRequest
from rolemesh.relay import members
from rolemesh.relay.edit import MAX_COMPLETIONS, RequestBody, as_members

DEEP = b'{"model": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def rewritten(body: bytes, model: str | None = None, **defaults: Any) -> bytes:
    return RequestBody.parse(body).rewritten(model, as_members(defaults))


@pytest.fixture(params=["msgspec", "standard library"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with both, as a distribution may have no msgspec."""
    if request.param == "standard library":
        monkeypatch.setattr(members, "msgspec", None)
    else:
        pytest.importorskip("msgspec")


@pytest.mark.parametrize(
    ("body", "edited"),
    [
        (b'{"model":"a","x":1.0}', b'{"model":"b","x":1.0}'),
        (
            b'{"model":"a","y":1e400,"z":123456789012345678901234567890,"p":-0.0,"q":1E+2,"n":1}',
            b'{"model":"b","y":1e400,"z":123456789012345678901234567890,"p":-0.0,"q":1E+2,"n":1}',
        ),
        (
            b'{ "model" :\t"a" ,\r\n "unknown" : { "b" : [ 1 , 2 ] } }  \n',
            b'{"model":"b","unknown":{ "b" : [ 1 , 2 ] }}',
        ),
        (
            b'{"model":"a","text":"\\u00e9\\/\\n\\ud83d\\ude00 \xc3\xa9","k\\u0065y":null}',
            b'{"model":"b","text":"\\u00e9\\/\\n\\ud83d\\ude00 \xc3\xa9","key":null}',
        ),
        (b'{"lone":"\\ud800","model":"a"}', b'{"lone":"\\ud800","model":"b"}'),
        (b'{"\\ud800":1,"model":"a"}', b'{"\\ud800":1,"model":"b"}'),
        (b'{"model":"a","x":NaN,"y":-Infinity}', b'{"model":"b","x":NaN,"y":-Infinity}'),
        (b'{"mod\\u0065l":"a"}', b'{"model":"b"}'),
        (b'{"model":"a","model":"c"}', b'{"model":"b"}'),
        (b'{"model":"a","model":"b"}', b'{"model":"b"}'),
        (b'{"a":1,"a":2,"model":"a","a":3}', b'{"a":3,"model":"b"}'),
        (b'{"model":null}', b'{"model":"b"}'),
        (b'{"x":{"model":"a"},"model":"a"}', b'{"x":{"model":"a"},"model":"b"}'),
        (b"{}", b'{"model":"b"}'),
        (b" \n{ \t} \r\n", b'{"model":"b"}'),
    ],
)
def test_only_the_model_is_replaced_and_every_other_value_passes_as_it_was_written(
    body: bytes, edited: bytes
) -> None:
    assert rewritten(body, "b") == edited


@pytest.mark.parametrize("body", [b'{"model":"a","x":[ 1.0 ]}', b'{"x":1e400}', b"{}"])
def test_without_another_model_or_defaults_all_stays(body: bytes) -> None:
    assert rewritten(body) == body


def test_a_model_name_is_written_so_that_any_parser_reads_it_back() -> None:
    name = 'quo"te \\ \x07 \u00e9\u2028\ud800'
    assert json.loads(rewritten(b'{"model":"a"}', name)) == {"model": name}


@pytest.mark.parametrize(
    ("body", "defaults", "edited"),
    [
        (b'{"model":"a"}', {"temperature": 0}, b'{"temperature":0,"model":"a"}'),
        (
            b'{"model":"a","temperature":1.0}',
            {"temperature": 0},
            b'{"temperature":1.0,"model":"a"}',
        ),
        (b'{"model":"a","stop":null}', {"stop": ["x"]}, b'{"stop":null,"model":"a"}'),
        (b"{}", {"x": "\u00e9", "y": {"z": None}}, '{"x":"\u00e9","y":{"z": null}}'.encode()),
    ],
)
def test_defaults_are_added_only_where_the_client_said_nothing(
    body: bytes, defaults: dict[str, Any], edited: bytes
) -> None:
    assert rewritten(body, None, **defaults) == edited


def test_members_can_be_replaced_and_added() -> None:
    body = RequestBody.parse(b'{"a": 1.0, "b": 2}')
    assert body.with_members({"b": True, "c": {"d": None}}) == b'{"a":1.0,"b":true,"c":{"d": null}}'


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "must be a JSON object"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"\xef\xbb\xbf{}", "must be a JSON object"),
        (b"{", "expected '\"'"),
        (b'{"a":1,}', "expected '\"'"),
        (b'{"a" 1}', "expected ':'"),
        (b'{"a":}', "Expecting value"),
        (b'{"a":1 "b":2}', "expected ','"),
        (b'{"a":1}{}', "extra data"),
        (b'{"a":1} x', "extra data"),
        (b"{} x", "extra data"),
        (b'{"a":"\n"}', "control character"),
        (b'{"a\n":1}', "control character"),
        (b'{"a":"\\x"}', "escape"),
        (b'{"a":01}', "expected ','"),
        (b'{"a":"\xff"}', r"not UTF-8 \(byte 6\)"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
        (DEEP, "nested too deeply"),
        (b'{"model":1}', "model must be a string"),
        (b'{"model":["a"]}', "model must be a string"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused_with_the_reason(body: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=f"(?i){says}"):
        RequestBody.parse(body)


def test_of_several_members_with_one_key_the_last_counts() -> None:
    body = RequestBody.parse(b'{"model":"a","stream":false,"model":"b","stream":true}')
    assert (body.model, body.stream) == ("b", True)


@pytest.mark.parametrize(
    ("text", "streams"), [("true", True), ("false", False), ("1", False), ("null", False)]
)
def test_only_true_asks_for_a_stream(text: str, streams: bool) -> None:
    assert RequestBody.parse(f'{{"stream":{text}}}'.encode()).stream is streams


@pytest.mark.parametrize(
    ("body", "prompts", "choices", "count"),
    [
        (b"{}", (), ("n",), 1),
        (b'{"n":3}', (), ("n",), 3),
        (b'{"n":3}', (), (), 1),
        (b'{"n":3,"n_cmpl":4}', (), ("n", "n_cmpl"), 4),
        (b'{"n":2.0}', (), ("n",), 2),
        (b'{"n":0}', (), ("n",), 1),
        (b'{"n":-2}', (), ("n",), 1),
        (b'{"n":-1e400}', (), ("n",), 1),
        (b'{"n":null}', (), ("n",), 1),
        (b'{"n":"5"}', (), ("n",), 1),
        (b'{"prompt":"a"}', ("prompt",), (), 1),
        (b'{"prompt":[]}', ("prompt",), (), 1),
        (b'{"prompt":["a","b"]}', ("prompt",), (), 2),
        (b'{"prompt":[1,2,3]}', ("prompt",), (), 1),
        (b'{"prompt":[[1,2],[3]]}', ("prompt",), (), 2),
        (b'{"prompt":["a","b"],"n":4}', ("prompt",), ("n",), 8),
        (b'{"prompt":["a","b"]}', (), (), 1),
        (b'{"input":"a","content":["a","b"]}', ("input", "content"), (), 2),
    ],
)
def test_a_request_asks_for_choices_of_each_of_its_prompts(
    body: bytes, prompts: tuple[str, ...], choices: tuple[str, ...], count: int
) -> None:
    assert RequestBody.parse(body).completions(prompts, choices) == count


@pytest.mark.parametrize("many", [str(MAX_COMPLETIONS + 1), "1e400", "1" * 40])
def test_more_completions_than_any_node_could_hold_are_refused(many: str) -> None:
    body = RequestBody.parse(b'{"n": %d}' % MAX_COMPLETIONS)
    assert body.completions((), ("n",)) == MAX_COMPLETIONS
    with pytest.raises(BadRequest) as refused:
        RequestBody.parse(f'{{"n": {many}}}'.encode()).completions((), ("n",))
    assert refused.value.param == "n"


# --- random bodies ----------------------------------------------------------------------------

CHARACTERS = ['"', "\\", "/", "\n", "\x01", "a", "\u00e9", "\u2028", "\U0001f600", "\ud800"]
NUMBERS = ["0", "-1", "1.0", "1e400", "1E-7", "123456789012345678901234567890"]


def random_text(rng: random.Random) -> str:
    return "".join(rng.choices(CHARACTERS, k=rng.randrange(5)))


def random_json(rng: random.Random, depth: int = 0) -> str:
    """Return JSON text with unusual spacing, escapes and numbers."""
    space = rng.choice(["", " ", "\n\t"])
    kind = rng.randrange(6 if depth < 3 else 4)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind in {1, 2}:
        return json.dumps(random_text(rng))
    if kind == 3:
        return rng.choice(["true", "false", "null"])
    values = [random_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 4:
        return f"[{space}" + f"{space},".join(values) + f"{space}]"
    members = [f"{json.dumps(random_text(rng))}{space}:{value}" for value in values]
    return f"{{{space}" + f",{space}".join(members) + f"{space}}}"


def random_body(rng: random.Random) -> str:
    members = [
        f"{json.dumps(random_text(rng))} : {random_json(rng)}" for _ in range(rng.randrange(5))
    ]
    members += [f'"model":{json.dumps(random_text(rng))}' for _ in range(rng.randrange(3))]
    members += ['"given" :1.50'] * rng.randrange(2)
    rng.shuffle(members)
    space = rng.choice(["", " ", "\r\n"])
    return f"{space}{{{space}" + f"{space},".join(members) + f"{space}}}{space}"


def values(text: str) -> dict[str, Any]:
    """Return the members of the top-level object; of those with one name the last, numbers as text."""
    read: dict[str, Any] = json.loads(text, parse_float=str, parse_int=str)
    return read


@pytest.mark.parametrize("seed", range(300))
def test_a_random_body_reads_as_json_does_and_changes_only_where_it_must(seed: int) -> None:
    rng = random.Random(seed)
    text = random_body(rng)
    body = RequestBody.parse(text.encode())
    assert body.model == json.loads(text).get("model")
    assert values(body.rewritten(None, {}).decode()) == values(text)

    after = values(body.rewritten("new", as_members({"given": 7})).decode())
    assert after == {"given": "7", **values(text), "model": "new"}
