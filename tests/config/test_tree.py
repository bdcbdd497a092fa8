from typing import Any

import pytest

from rolemesh.config import tree
from rolemesh.config.tree import Node, Origin


def node(value: Any) -> Node:
    if isinstance(value, dict):
        value = {key: node(child) for key, child in value.items()}
    elif isinstance(value, list):
        value = tuple(map(node, value))
    return Node(value=value, origin=Origin("f.yaml", 7))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("models", "planner", "proxy_url"), "models.planner.proxy_url"),
        (("auth", "client_api_keys", 0), "auth.client_api_keys[0]"),
        (("models", "qwen2.5-7b"), 'models."qwen2.5-7b"'),
        (("gateways", "http://me:secret@h:1"), 'gateways."http://...@h:1"'),
    ],
)
def test_a_path_reads_as_people_write_it(path: tree.KeyPath, text: str) -> None:
    assert tree.dotted(path) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "a mapping"),
        ([1], "a list"),
        ([], "an empty list"),
        (None, "null"),
        (True, "true"),
        (5, "5"),
        ("yes", '"yes"'),
        ("ü" * 100, '"' + "ü" * 59 + "..."),
        ("http://me:secret@h:1", '"http://...@h:1"'),
    ],
)
def test_a_value_is_shown_short_and_as_it_would_be_written(value: Any, text: str) -> None:
    assert tree.shown(node(value), ("listen", "host")) == text


def test_what_is_not_there_is_shown_as_nothing() -> None:
    assert tree.shown(None, ("listen",)) == "nothing"


@pytest.mark.parametrize(
    "path",
    [
        ("auth",),
        ("auth", "client_api_keys"),
        ("auth", "client_api_keys", 0),
        ("auth", "clients", "ci"),
        ("auth", "clients", "roles", "key"),
        ("auth", "clients", "ci", "key_file"),
        ("auth", "unknown"),
        ("gateways",),
        ("gateways", "http://h:1", "api_key"),
    ],
)
def test_whatever_may_be_a_key_is_never_shown(path: tree.KeyPath) -> None:
    assert tree.shown(node("sk-1"), path) == "a string"
    assert tree.shown(node(4711), path) == "a number or boolean"
    assert "sk-1" not in repr(node({"auth": "sk-1"}))


@pytest.mark.parametrize(
    "path",
    [("auth", "open"), ("auth", "clients", "ci", "roles", 0), ("gateways", 0, "url"), ("models",)],
)
def test_what_is_never_a_key_is_shown(path: tree.KeyPath) -> None:
    assert tree.shown(node("x"), path) == '"x"'


def test_a_mismatch_names_what_stood_there_before() -> None:
    below = Node(value="10.0.0.1", origin=Origin("a.yaml", 2))
    above = Node(value=5, origin=Origin("b.yaml", 3), replaced=below)
    found = tree.mismatch(above, ("listen", "host"), "an address", "ask")
    assert str(found.problem()) == (
        'b.yaml:3: listen.host: expected an address, found 5 (was "10.0.0.1" from a.yaml:2); ask'
    )


def test_a_tree_is_walked_outside_in_and_turned_into_plain_values() -> None:
    plain = {"a": [1, {"b": None}], "c": "x"}
    root = node(plain)
    assert tree.plain(root) == plain
    paths = [path for path, _ in tree.walk(root)]
    assert paths == [(), ("a",), ("a", 0), ("a", 1), ("a", 1, "b"), ("c",)]


def test_values_are_found_by_path_and_missing_ones_are_none() -> None:
    root = node({"a": [{"b": "x"}, 3]})
    assert tree.text_at(root, ("a", 0, "b")) == "x"
    assert tree.text_at(root, ("a", 1)) is None
    for path in (("z",), ("a", 2), ("a", 0, "b", "c"), ("a", "b")):
        assert tree.find(root, path) is None


def test_entries_can_be_left_out_at_any_depth() -> None:
    root = node({"a": {"b": 1, "c": 2}, "d": [{"e": 3, "f": 4}]})
    left = tree.without(root, frozenset({("a", "b"), ("d", 0, "f")}))
    assert tree.plain(left) == {"a": {"c": 2}, "d": [{"e": 3}]}


def test_a_nested_value_has_one_origin_all_the_way() -> None:
    root = tree.nested(("listen", "host"), ("::1", "127.0.0.1"), Origin("--host"))
    assert tree.plain(root) == {"listen": {"host": ["::1", "127.0.0.1"]}}
    assert {str(each.origin) for _, each in tree.walk(root)} == {"--host"}


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("modles", ["models", "listen"], 'did you mean "models"?'),
        ("zzz", ["models", "listen"], "known here: listen, models"),
        ("zzz", [], ""),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest(
    word: str, known: list[str], hint: str
) -> None:
    assert tree.did_you_mean(word, known) == hint
