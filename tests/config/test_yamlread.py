from typing import Any

import pytest
import yaml

from rolemesh.config import tree, yamlread
from rolemesh.config.yamlread import YamlError, read_yaml, resolve_scalar
from tests.config.conftest import Parse


@pytest.fixture(params=["C", "Python"], autouse=True)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run every test with both of PyYAML's parsers."""
    if request.param == "C" and not yaml.__with_libyaml__:
        pytest.skip("PyYAML was built without libyaml")
    loader = yaml.CSafeLoader if request.param == "C" else yaml.SafeLoader
    monkeypatch.setattr(yamlread, "_LOADER", loader)
    return str(request.param)


def problems(text: str) -> list[str]:
    with pytest.raises(YamlError) as refused:
        read_yaml(text, "f.yaml")
    return [str(finding.problem()) for finding in refused.value.findings]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("off", "off"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("-5", -5),
        ("1e3", 1000.0),
        (".5", 0.5),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("1e999", "1e999"),
        ("1" * 41, "1" * 41),
        ("<<", "<<"),
    ],
)
def test_plain_scalars_mean_what_yaml_1_2_says(text: str, value: Any) -> None:
    found = resolve_scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_quoted_and_tagged_scalars_are_strings(parse: Parse) -> None:
    root = parse("""
        a: "5"
        b: 'true'
        c: !!str 5
        d: |
          5
        """)
    assert tree.plain(root) == {"a": "5", "b": "true", "c": "5", "d": "5\n"}


def test_keys_are_strings_whatever_they_look_like(parse: Parse) -> None:
    assert tree.plain(parse("{8000: a, on: b, null: c, 1.5: d}")) == {
        "8000": "a", "on": "b", "null": "c", "1.5": "d"
    }  # fmt: skip


def test_every_value_knows_the_line_of_its_key_or_item(parse: Parse) -> None:
    root = parse("""
        # comment
        listen:
          host:
            - ::1
            - 127.0.0.1
        text: >
          folded
        """)
    lines = {tree.dotted(path): node.origin.line for path, node in tree.walk(root) if path}
    assert lines == {
        "listen": 2, "listen.host": 3, "listen.host[0]": 4, "listen.host[1]": 5, "text": 6
    }  # fmt: skip
    assert str(root.origin) == "f.yaml:2"


def test_aliases_repeat_a_value_and_have_the_origin_of_their_own_key(parse: Parse) -> None:
    root = parse("""
        a: &slow {first_byte_s: 900}
        b: *slow
        """)
    assert tree.plain(root) == {"a": {"first_byte_s": 900}, "b": {"first_byte_s": 900}}
    assert root.value["b"].origin.line == 2  # type: ignore[call-overload,index,union-attr]


def test_merge_keys_give_what_the_mapping_itself_does_not_say(parse: Parse) -> None:
    root = parse("""
        a: &a {x: 1, y: 1}
        b: &b {x: 2, z: 2}
        one: {<<: *a, y: 3}
        two: {y: 3, <<: [*a, *b]}
        """)
    values = tree.plain(root)
    assert values["one"] == {"x": 1, "y": 3}
    assert values["two"] == {"x": 1, "y": 3, "z": 2}


@pytest.mark.parametrize("text", ["", "# only a comment\n", "\n\n"])
def test_a_file_without_a_document_is_nothing(text: str) -> None:
    assert read_yaml(text, "f.yaml") is None


def test_all_duplicate_keys_of_a_file_are_told_with_both_lines() -> None:
    assert problems("a: 1\nb: {c: 1,\n c: 2}\na: 2\n") == [
        "f.yaml:3: b.c: expected once in a file, found again (first at line 2)",
        "f.yaml:4: a: expected once in a file, found again (first at line 1)",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: !secret x", 'f.yaml:1: a: expected no tag; quote a value that begins with "!"'),
        ("a: !!set {x}", 'f.yaml:1: a: expected no tag; quote a value that begins with "!"'),
        (
            "a:\n- *sk-1",
            "f.yaml:2: a[0]: expected the name of an anchor above; "
            'quote a value that begins with "*"',
        ),
        (
            "a: &a [*a]",
            "f.yaml:1: a[0]: expected the name of an anchor above; "
            'quote a value that begins with "*"',
        ),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: expected one document, a second one begins here"),
        ("a: \x00", "f.yaml:1: not valid YAML: character U+0000 is not allowed"),
        ("a: 1\nb: \x07", "f.yaml:2: not valid YAML: character U+0007 is not allowed"),
        ("[" * 60, "f.yaml:1: expected at most 50 levels"),
        ("m: {? [a] : b}", "f.yaml:1: expected a name as key in m"),
        ("{}: 1", "f.yaml:1: expected a name as key in the file"),
        ("<<: 3", 'f.yaml:1: "<<": expected a mapping, or a list of mappings, to merge'),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(text: str, expected: str) -> None:
    assert problems(text) == [expected]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("a: [1,\nb: 2\n", "f.yaml:"),
        ("a: b: c\n", "f.yaml:1: not valid YAML: mapping values are not allowed"),
        (
            "a: 'x\n\n",
            "f.yaml:3: not valid YAML: found unexpected end of stream"
            " (while scanning a quoted scalar that begins at line 1)",
        ),
        ("a:\n\t- b\n", "f.yaml:2: not valid YAML: found character "),
    ],
)
def test_broken_yaml_is_named_with_its_line(text: str, start: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(start)
    assert "not valid YAML: " in problem


def test_tabs_are_named_as_the_cause() -> None:
    (problem,) = problems("a:\n\t- b\n")
    assert problem.endswith("; indent with spaces, not with tabs")


def test_a_syntax_error_quotes_nothing_of_the_file_and_has_no_cause() -> None:
    with pytest.raises(YamlError) as refused:
        read_yaml("client_api_keys: ['sk-1' 'sk-2']\n", "f.yaml")
    assert "sk-" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_an_error_without_a_place_names_the_file() -> None:
    found = yamlread._syntax_finding(yaml.YAMLError("sk-1"), "", "f.yaml")
    assert str(found.problem()) == "f.yaml: not valid YAML"


def bomb(levels: int, width: int) -> str:
    """Return lists that each repeat the one before `width` times."""
    lists = (
        f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * width)}]"
        for level in range(1, levels)
    )
    return "\n".join(("l0: &l0 x", *lists))


def test_aliases_that_expand_without_end_are_refused() -> None:
    (problem,) = problems(bomb(levels=8, width=10))
    assert problem == "f.yaml:6: expected at most 100000 values (aliases expanded)"


def test_aliases_do_not_get_around_the_bound_of_depth() -> None:
    assert problems(bomb(levels=80, width=1)) == ["f.yaml:51: expected at most 50 levels"]
