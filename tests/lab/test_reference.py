import json
import re
from pathlib import Path

import pytest

from tests.lab import reference


@pytest.mark.parametrize("page", reference.PAGES, ids=lambda page: page.name)
def test_every_table_says_what_the_schemas_say(page: Path) -> None:
    text = page.read_text()
    assert "<!-- end -->" in text
    assert reference.filled(text) == text, "make docs writes it anew"


@pytest.mark.parametrize("program", ["gateway", "node"])
def test_every_key_of_the_configuration_stands_in_the_reference(program: str) -> None:
    text = (reference.ROOT / "docs/configuration.md").read_text()
    own = "".join(re.findall(rf"<!-- keys of {program}: .*?<!-- end -->", text, re.DOTALL))
    shown = set(re.findall(r"^\| `(\w+)` \|", own, re.MULTILINE))
    schema = json.loads((reference.ROOT / f"rolemesh/config/schemas/{program}.json").read_text())
    assert keys_of(schema) - {"type"} <= shown


def keys_of(node: object) -> set[str]:
    """Return every key that some mapping of a schema has."""
    if isinstance(node, list):
        return set().union(*map(keys_of, node))
    if not isinstance(node, dict):
        return set()
    own = node.get("properties")
    named = set(own) if isinstance(own, dict) and node.get("type") == "object" else set()
    return named.union(*map(keys_of, node.values()))


def test_what_stands_outside_of_tables_stays() -> None:
    text = "before\n<!-- keys of gateway: /properties/aliases -->\nold\n<!-- end -->\nafter\n"
    assert reference.filled(text) == (
        "before\n<!-- keys of gateway: /properties/aliases -->\n\n"
        "| key | meaning | value | default |\n|---|---|---|---|\n"
        "| `from_roles` | Whether every role announced by an authenticated node is an alias at "
        "once | true or false | `false` |\n\n<!-- end -->\nafter\n"
    )
