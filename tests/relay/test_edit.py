"""The edit is judged by what stays: every byte that routing has no business with."""

import json
import random
from typing import Any

import pytest

from rolemesh.errors import BadRequest
from rolemesh.relay.edit import MAX_PROMPTS, RequestBody

DEEP = b'{"model": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def rewritten(body: bytes, model: str | None = None, **defaults: Any) -> bytes:
    return RequestBody.parse(body).rewritten(model, defaults)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a"}',
        b'{"model":"a","temperature":1.0,"top_p":1e400,"seed":123456789012345678901234567890}',
        b'{"model":"a","x":-0.0,"y":1E+2,"z":0.10000000000000000000001,"n":1}',
        b'{ "model" :\t"a" ,\r\n "unknown" : { "b" : [ 1 , 2 ] } }  \n',
        b'{"model":"a","text":"\\u00e9\\/\\n\\ud83d\\ude00 \xc3\xa9","k\\u0065y":null}',
        b'{"model":"a","lone":"\\ud800"}',
        b'{"a":1,"a":2,"model":"a","a":3}',
        b'{"model":"a","x":NaN,"y":Infinity,"z":-Infinity}',
        b"{}",
        b" \n{ \t} \r\n",
    ],
)
@pytest.mark.parametrize("model", [None, "a"])
def test_what_needs_no_edit_is_sent_byte_for_byte(body: bytes, model: str | None) -> None:
    if b"model" in body or model is None:
        assert rewritten(body, model) == body


@pytest.mark.parametrize(
    ("body", "edited"),
    [
        (b'{"model":"a","x":1.0}', b'{"model":"b","x":1.0}'),
        (b'{ "x" : 1e400 , "model" : "a" }', b'{ "x" : 1e400 , "model" : "b" }'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"b"}'),
        (b'{"model":"a","model":"c"}', b'{"model":"b","model":"b"}'),
        (b'{"model":"a","model":"b"}', b'{"model":"b","model":"b"}'),
        (b'{"model":null}', b'{"model":"b"}'),
        (b'{"x":{"model":"a"},"model":"a"}', b'{"x":{"model":"a"},"model":"b"}'),
        (b"{}", b'{"model": "b"}'),
        (b'{ "x":1}', b'{"model": "b", "x":1}'),
    ],
)
def test_the_model_is_replaced_wherever_it_stands_and_nothing_else(
    body: bytes, edited: bytes
) -> None:
    assert rewritten(body, "b") == edited


def test_a_model_name_is_written_so_that_any_parser_reads_it_back() -> None:
    name = 'quo"te \\ \x07 \u00e9\u2028'
    assert json.loads(rewritten(b'{"model":"a"}', name)) == {"model": name}


@pytest.mark.parametrize(
    ("body", "defaults", "edited"),
    [
        (b'{"model":"a"}', {"temperature": 0}, b'{"temperature": 0,"model":"a"}'),
        (
            b'{"model":"a","temperature":1.0}',
            {"temperature": 0},
            b'{"model":"a","temperature":1.0}',
        ),
        (b'{"model":"a","stop":null}', {"stop": ["x"]}, b'{"model":"a","stop":null}'),
        (b"{}", {"x": "\u00e9", "y": {"z": None}}, '{"x": "\u00e9", "y": {"z": null}}'.encode()),
        (b'\n{\n"model":"a"}', {"x": 1}, b'\n{"x": 1,\n"model":"a"}'),
    ],
)
def test_defaults_are_added_only_where_the_client_said_nothing(
    body: bytes, defaults: dict[str, Any], edited: bytes
) -> None:
    assert rewritten(body, None, **defaults) == edited


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
    ("body", "prompts_key", "slots"),
    [
        (b"{}", None, 1),
        (b'{"n":3}', None, 3),
        (b'{"n":0}', None, 1),
        (b'{"n":-2}', None, 1),
        (b'{"n":null}', None, 1),
        (b'{"n":"5"}', None, 1),
        (b'{"prompt":"a"}', "prompt", 1),
        (b'{"prompt":[]}', "prompt", 1),
        (b'{"prompt":["a","b"]}', "prompt", 2),
        (b'{"prompt":[1,2,3]}', "prompt", 1),
        (b'{"prompt":[[1,2],[3]]}', "prompt", 2),
        (b'{"prompt":["a","b"],"n":4}', "prompt", 8),
        (b'{"prompt":["a","b"]}', None, 1),
    ],
)
def test_a_request_takes_n_times_its_prompts_slots(
    body: bytes, prompts_key: str | None, slots: int
) -> None:
    assert RequestBody.parse(body).slots(prompts_key) == slots


def test_more_prompts_than_any_node_could_hold_are_refused() -> None:
    assert RequestBody.parse(b'{"n": %d}' % MAX_PROMPTS).slots(None) == MAX_PROMPTS
    with pytest.raises(BadRequest) as refused:
        RequestBody.parse(b'{"n": %d}' % (MAX_PROMPTS + 1)).slots(None)
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


def pairs(text: str) -> list[tuple[str, Any]]:
    """Return the members of the top-level object in order, duplicates kept, numbers as text."""
    listed: list[tuple[str, Any]] = json.loads(
        text, object_pairs_hook=list, parse_float=str, parse_int=str
    )
    return listed


@pytest.mark.parametrize("seed", range(300))
def test_a_random_body_reads_as_json_does_and_changes_only_where_it_must(seed: int) -> None:
    rng = random.Random(seed)
    text = random_body(rng)
    body = RequestBody.parse(text.encode())
    assert body.model == json.loads(text).get("model")
    assert body.rewritten(None, {}) == text.encode()

    before, keys = pairs(text), {key for key, _ in pairs(text)}
    added = [] if "given" in keys else [("given", "7")]
    added += [] if "model" in keys else [("model", "new")]
    after = [(key, "new" if key == "model" else value) for key, value in before]
    assert pairs(body.rewritten("new", {"given": 7}).decode()) == added + after


@pytest.mark.parametrize(
    ("body", "members", "edited"),
    [
        (b"{}", {"a": True}, b'{"a": true}'),
        (b'{ "x" : 1.0 }', {"a": True}, b'{"a": true, "x" : 1.0 }'),
        (b'{"a" : 1.0,"x":1e400}', {"a": {"b": [None]}}, b'{"a" : {"b": [null]},"x":1e400}'),
        (b'{"a":1}', {"a": True}, b'{"a":true}'),
        (b'{"a":1,"x":2,"\\u0061":3}', {"a": 4}, b'{"a":4,"x":2,"\\u0061":4}'),
        (b'{"x":{"a":1}}', {"a": 2}, b'{"a": 2,"x":{"a":1}}'),
        (b'{"a":"\\ud800"}', {"a": "\ud800"}, b'{"a":"\\ud800"}'),
        (b'{"a":1}', {}, b'{"a":1}'),
    ],
)
def test_members_are_replaced_or_added_and_nothing_else(
    body: bytes, members: dict[str, Any], edited: bytes
) -> None:
    assert RequestBody.parse(body).with_members(members) == edited
