import pytest

from rolemesh.config.checks import check_named_keys, check_repeated_name, check_url
from rolemesh.config.tree import Finding
from tests.config.conftest import Parse


def texts(findings: list[Finding]) -> list[str]:
    return [str(finding.problem()) for finding in findings]


@pytest.mark.parametrize(
    "url", ["http://h", "http://10.0.0.1:8011/v1", "https://h", "https://[::1]:80/x"]
)
def test_a_base_url_is_accepted(parse: Parse, url: str) -> None:
    assert list(check_url(parse(f"url: '{url}'"), ("url",))) == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ftp://h", "ftp://h"),
        ("h:8011", "h:8011"),
        ("http://", "http://"),
        ("http://h:99999", "http://h:99999"),
        ("http://h/?a=b", "http://h/?a=b"),
        ("http://[::1", "http://[::1"),
        ("http://me:secret@h:1", "http://...@h:1"),
    ],
)
def test_what_cannot_be_connected_to_is_found_without_showing_a_password(
    parse: Parse, url: str, shown: str
) -> None:
    assert texts([*check_url(parse(f"url: '{url}'"), ("url",))]) == [
        f'f.yaml:1: url: expected http[s]://HOST[:PORT][/PREFIX], found "{shown}"'
    ]


@pytest.mark.parametrize("text", ["url: 5", "other: x"])
def test_what_is_no_string_is_left_to_the_schema(parse: Parse, text: str) -> None:
    assert list(check_url(parse(text), ("url",))) == []


def test_a_named_key_is_given_in_exactly_one_form(parse: Parse) -> None:
    root = parse("""
        k:
          none: {roles: [a]}
          both: {key: a, key_file: /b}
          one: {key: a}
          wrong: a
        """)
    assert texts([*check_named_keys(root, ("k",))]) == [
        "f.yaml:2: k.none: expected exactly one of key, key_sha256 and key_file, found none",
        "f.yaml:3: k.both: expected exactly one of key, key_sha256 and key_file, "
        "found key and key_file",
    ]  # fmt: skip


def test_a_name_that_is_repeated_inside_must_be_the_same(parse: Parse) -> None:
    root = parse("models:\n  a: {model_id: a}\n  b: {model_id: c}\n  d: {}\n  e: 5")
    assert texts([*check_repeated_name(root, "models", "model_id")]) == [
        'f.yaml:3: models.b.model_id: expected "b", as its key says, found "c"'
    ]
