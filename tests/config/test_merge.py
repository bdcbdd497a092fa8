from typing import Any

import pytest

from rolemesh.config import tree
from rolemesh.config.merge import SHAPES, Merged, merge
from tests.config.conftest import Parse

SHAPE = SHAPES["node"]


def merged(parse: Parse, *texts: str) -> Merged:
    """Merge `texts` as the node files a.yaml, b.yaml, ..."""
    names = "abcdefgh"
    return merge([parse(text, f"{names[i]}.yaml") for i, text in enumerate(texts)], SHAPE)


def values(parse: Parse, *texts: str) -> Any:
    result = merged(parse, *texts)
    assert result.findings == ()
    return tree.plain(result.root)


def test_nothing_merges_into_an_empty_mapping() -> None:
    assert tree.plain(merge([], SHAPE).root) == {}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["x: {p: 1, q: 1}", "x: {q: 2, r: 2}"], {"x": {"p": 1, "q": 2, "r": 2}}),
        (["x: 1", "x: {p: 1}"], {"x": {"p": 1}}),
        (["x: {p: 1}", "x: 1"], {"x": 1}),
        (["x: [1, 2]", "x: [3]"], {"x": [3]}),
        (["x: [1, 2]", "x: []"], {"x": []}),
        (["x: {p: 1}", "x: {}"], {"x": {"p": 1}}),
    ],
)
def test_mappings_merge_by_key_and_everything_else_is_replaced(
    parse: Parse, texts: list[str], expected: Any
) -> None:
    assert values(parse, *texts) == expected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["x: {p: 1, q: 1}", "x: {p: null}"], {"x": {"q": 1}}),
        (["x: {p: 1}", "x: null"], {}),
        (["x: null"], {}),
        (["x: {p: {q: null}}"], {"x": {"p": {}}}),
        (["x: 1", "x: null", "x: 2"], {"x": 2}),
        (["x: {p: 1}", "x: null", "x: {q: 2}"], {"x": {"q": 2}}),
        (["x: [null]"], {"x": [None]}),
        (["models: [{model_id: a}, {model_id: b}]", "models: {a: null}"], {"models": {"b": {"model_id": "b"}}}),
    ],
)  # fmt: skip
def test_null_deletes(parse: Parse, texts: list[str], expected: Any) -> None:
    assert values(parse, *texts) == expected


@pytest.mark.parametrize(
    ("texts", "keys"),
    [
        (["[a, b]", "[c]"], ["a", "b", "c"]),
        (["[a, b]", "[b, c]"], ["a", "b", "c"]),
        (["[a, a]"], ["a"]),
        (["[a]", "[]"], []),
        (["[a]", "[]", "[b]"], ["b"]),
        (["[1]", "['1']"], [1, "1"]),
        (["wrong", "[a]"], ["a"]),
        (["[a]", "wrong"], "wrong"),
    ],
)
def test_lists_of_keys_are_sets_and_an_empty_list_starts_afresh(
    parse: Parse, texts: list[str], keys: Any
) -> None:
    files = [f"auth: {{api_keys: {text}}}" for text in texts]
    assert values(parse, *files) == {"auth": {"api_keys": keys}}


def test_only_the_lists_named_in_the_shape_are_sets(parse: Parse) -> None:
    assert values(parse, "api_keys: [a]", "api_keys: [b]") == {"api_keys": ["b"]}
    assert merge([parse("auth: {node_api_keys: [a]}"), parse("auth: {node_api_keys: [b]}")],
        SHAPES["gateway"]).findings == ()  # fmt: skip


def test_lists_of_things_with_a_key_are_mappings(parse: Parse) -> None:
    assert values(
        parse,
        "models: [{model_id: a, path: /a, roles: [x]}, {model_id: b, path: /b}]",
        "models: [{model_id: a, path: /new}, {model_id: c, path: /c}]",
        "models: {c: {parallel: 2}}",
    ) == {
        "models": {
            "a": {"model_id": "a", "path": "/new", "roles": ["x"]},
            "b": {"model_id": "b", "path": "/b"},
            "c": {"model_id": "c", "path": "/c", "parallel": 2},
        }
    }


def test_an_empty_list_of_things_with_a_key_starts_afresh(parse: Parse) -> None:
    first = "gateways: [{url: 'http://a'}]"
    assert values(parse, first, "gateways: []") == {"gateways": {}}
    assert values(parse, "gateways: []") == {"gateways": {}}
    second = "gateways: [{url: 'http://b'}]"
    assert values(parse, first, "gateways: []", second) == {
        "gateways": {"http://b": {"url": "http://b"}}
    }


def test_items_without_a_usable_key_are_told_all_at_once(parse: Parse) -> None:
    result = merged(
        parse,
        "models:\n- path: /a\n- model_id: 5\n- model_id: x\n- oops\n- model_id: x\n- model_id: null",
    )
    assert [str(finding.problem()) for finding in result.findings] == [
        "a.yaml:2: models[0].model_id: expected a string, found nothing",
        "a.yaml:3: models[1].model_id: expected a string, found 5",
        'a.yaml:5: models[3]: expected a mapping with model_id, found "oops"',
        "a.yaml:6: models.x: expected once in a file, found again (first at line 4)",
        "a.yaml:7: models[5].model_id: expected a string, found null",
    ]


def test_every_value_keeps_its_origin_and_what_it_replaced(parse: Parse) -> None:
    root = merged(parse, "x: {p: 1, q: 1}", "#\nx: {q: 2}", "#\n#\nx: {q: 3}").root
    origins = {tree.dotted(path): str(node.origin) for path, node in tree.walk(root) if path}
    assert origins == {"x": "c.yaml:3", "x.p": "a.yaml:1", "x.q": "c.yaml:3"}
    q = tree.find(root, ("x", "q"))
    assert q is not None
    assert q.replaced is not None
    assert (q.replaced.value, str(q.replaced.origin)) == (2, "b.yaml:2")


def test_a_mapping_over_a_scalar_remembers_the_scalar(parse: Parse) -> None:
    x = tree.find(merged(parse, "x: 1", "x: {p: 1}").root, ("x",))
    assert x is not None
    assert x.replaced is not None
    assert x.replaced.value == 1


def test_merging_does_not_change_what_is_merged(parse: Parse) -> None:
    first, second = parse("x: {p: [1]}"), parse("x: {q: 2}")
    merge([first, second], SHAPE)
    assert tree.plain(first) == {"x": {"p": [1]}}
    assert tree.plain(second) == {"x": {"q": 2}}
