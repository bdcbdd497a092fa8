import json
from pathlib import Path

import pytest

from rolemesh.config.tree import KeyPath
from rolemesh.ctl.config_show import parse_key
from rolemesh.ctl.outcomes import BadUsage
from tests.ctl.conftest import Ctl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return two files of which the second replaces something of the first."""
    (tmp_path / "10-a.yaml").write_text(
        "listen: {port: 9000}\n"
        "auth: {clients: {ci: {key: hush, roles: [coder]}}}\n"
        "models:\n"
        "  qwen2.5: {type: proxy, proxy_url: 'http://u:p@h:1'}\n"
        "  coder: {type: discovered, timeouts: {idle_s: 9}}\n"
    )
    (tmp_path / "20-b.yaml").write_text("listen:\n  port: 9001\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", ()),
        ("listen", ("listen",)),
        ("listen.port", ("listen", "port")),
        ('models."qwen2.5".roles[0]', ("models", "qwen2.5", "roles", 0)),
        (r'a."say \"x\""', ("a", 'say "x"')),
    ],
)
def test_keys_are_written_as_messages_write_them(text: str, path: KeyPath) -> None:
    assert parse_key(text) == path


@pytest.mark.parametrize("text", ["a..b", 'a."b', "a[b]", "a."])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(BadUsage, match="is not a key such as"):
        parse_key(text)


def test_a_value_has_who_set_it_and_what_it_replaced(ctl: Ctl, folder: Path) -> None:
    done = ctl("config", "show", "listen", "--config-dir", folder)
    assert done.status == 0
    assert [line.split(maxsplit=3) for line in done.lines] == [
        ["KEY", "VALUE", "SET", "BY" + done.lines[0].partition("BY")[2]],
        ["listen.port", "9001", f"{folder}/20-b.yaml:2", f"9000 from {folder}/10-a.yaml:1"],
        ["listen.host", '"127.0.0.1"', "default", "-"],
    ]


def test_keys_are_hidden(ctl: Ctl, folder: Path) -> None:
    done = ctl("config", "show", "--config-dir", folder)
    assert "auth.clients.ci.key" in done.out
    assert "(hidden)" in done.out
    assert "hush" not in done.out
    assert "u:p" not in done.out


@pytest.mark.parametrize("key", ["models.qwen2.5.type", 'models."qwen2.5".type'])
def test_a_name_with_a_dot_may_stand_with_or_without_quotes(
    ctl: Ctl, folder: Path, key: str
) -> None:
    (value,) = json.loads(ctl("config", "show", key, "--json", "--config-dir", folder).out)[
        "values"
    ]
    assert value["key"] == 'models."qwen2.5".type'
    assert value["value"] == '"proxy"'
    assert value["where"] == f"{folder}/10-a.yaml:4"
    assert value["was"] is None
    assert not value["is_default"]


def test_defaults_are_those_of_the_kind_of_alias(ctl: Ctl, folder: Path) -> None:
    done = ctl("config", "show", "models.coder", "--json", "--config-dir", folder)
    values = {each["key"]: each for each in json.loads(done.out)["values"]}
    assert values["models.coder.priority"] == {
        "key": "models.coder.priority",
        "value": '"default"',
        "where": "default",
        "was": None,
        "is_default": True,
    }
    # Those of the alias are the ones at the top, whatever these are.
    assert [key for key in values if "timeouts" in key] == ["models.coder.timeouts.idle_s"]


def test_what_is_nowhere_is_status_4_with_a_guess(ctl: Ctl, folder: Path) -> None:
    done = ctl("config", "show", "lisen", "--config-dir", folder)
    assert (done.status, done.out) == (4, "")
    assert 'lisen is not set and has no default; did you mean "listen"?' in done.err
    done = ctl("config", "show", "models.codr", "--config-dir", folder)
    assert 'did you mean "coder"?' in done.err
    assert ctl("config", "show", "a..b", "--config-dir", folder).status == 2


def test_a_configuration_with_problems_is_shown_with_them(ctl: Ctl, folder: Path) -> None:
    (folder / "30-c.yaml").write_text("a: [\n")
    done = ctl("config", "show", "listen.port", "--config-dir", folder)
    assert done.status == 78
    assert "9001" in done.out
    assert "30-c.yaml:2: not valid YAML" in done.err
