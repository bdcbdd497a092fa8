import random
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import pytest

from rolemesh.config.quick_check import is_surely_valid
from rolemesh.config.schema import load_schema
from rolemesh.config.tree import Program

PROGRAMS: tuple[Program, ...] = ("gateway", "node")
TREES = 2000
TEXTS = (
    *("", "a", "a b", "proxy", "discovered", "batch", "127.0.0.1", "http://h:1", "/x/y.gguf"),
    *("gpu0", "cpu0", "gpu00", "a" * 64, "a\n", "x" * 300, "*", "../x", "1"),
)
SCALARS = (None, True, False, 0, 1, 2, 70000, -1, 0.5, 1.0, 0.0, *TEXTS)

VALID: Mapping[Program, Any] = {
    "gateway": {
        "version": 1,
        "listen": {"host": ["0.0.0.0", "::"], "port": 8000},
        "aliases": {"from_roles": True},
        "auth": {"clients": {"ci": {"key_sha256": "0a" * 32}}, "node_api_keys": ["secret"]},
        "timeouts": {"idle_s": 2.5},
        "models": {
            "planner": {"type": "proxy", "proxy_url": "http://h:1", "priority": "batch"},
            "coder": {"type": "discovered", "role": "coder"},
        },
    },
    "node": {
        "version": 1,
        "node_id": "box",
        "gpus": [0, "GPU-1"],
        "gateways": {"http://gw:8000": {"api_key": "secret"}},
        "llama_server": {"path": "/usr/bin/llama-server", "args": ["-v"]},
        "models": {"m": {"path": "/m.gguf", "roles": ["coder"], "context_size": 4096}},
        "instances": {"gpu0": {"model": "m", "gpus": [0, 1]}, "cpu0": {}},
    },
}


class Maker:
    """Makes trees at random that a schema nearly describes."""

    def __init__(self, schema: Mapping[str, Any], seed: int) -> None:
        self._definitions = schema["$defs"]
        self._random = random.Random(seed)

    def make(self, part: Any) -> Any:
        pick = self._random
        if not isinstance(part, dict) or pick.random() < 0.01:
            return pick.choice((*SCALARS, [], {}))
        if "$ref" in part:
            return self.make(self._definitions[part["$ref"].rpartition("/")[2]])
        if "const" in part or "enum" in part:
            return pick.choice([part.get("const"), *part.get("enum", ())][-3:])
        kinds = part.get("type", "object" if "properties" in part else "string")
        match pick.choice(kinds) if isinstance(kinds, list) else kinds:
            case "object":
                return dict(self._entries(part))
            case "array":
                return [self.make(part.get("items", True)) for _ in range(pick.randrange(3))]
            case "boolean":
                return pick.choice((True, False))
            case "integer" | "number":
                return pick.choice((part.get("minimum", 1), 1, 30, 0.5, 2.0))
            case _:
                fitting = [text for text in TEXTS if re.search(part.get("pattern", ""), text)]
                return pick.choice(fitting or TEXTS)

    def _entries(self, part: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        pick = self._random
        for key, child in part.get("properties", {}).items():
            if key in part.get("required", ()) or pick.random() < 0.3:
                yield key, self.make(child)
        if isinstance(part.get("additionalProperties"), dict):
            for _ in range(pick.randrange(3)):
                yield pick.choice(TEXTS), self.make(part["additionalProperties"])
        elif pick.random() < 0.02:
            yield "unknown", 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_it_accepts_is_valid(program: Program) -> None:
    schema = load_schema(program)
    validator = jsonschema.Draft202012Validator(schema)
    maker = Maker(schema, seed=1)
    trees = [maker.make(schema) for _ in range(TREES)]
    accepted = [tree for tree in trees if is_surely_valid(tree, schema)]
    assert [tree for tree in accepted if not validator.is_valid(tree)] == []
    # And it is of use: what it doubts is hardly ever valid.
    doubted = [tree for tree in trees if validator.is_valid(tree) and tree not in accepted]
    assert sum(len(str(tree)) > 200 for tree in accepted) > TREES / 100
    assert len(doubted) < len(accepted) / 2


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_knows_every_keyword_of_a_usual_configuration(program: Program) -> None:
    assert is_surely_valid(VALID[program], load_schema(program))


@pytest.mark.parametrize(
    ("schema", "instance"),
    [
        ({"type": "integer"}, 1.0),
        ({"const": 1}, 1.0),
        ({"enum": [[1]]}, [1]),
        ({"uniqueItems": True}, [1, "1"]),
        ({"minContains": 1}, []),
        ({"$ref": "https://elsewhere/x"}, 1),
        ({"if": {"const": 1}, "then": False}, 1.0),
    ],
)
def test_what_it_does_not_know_it_doubts(schema: Any, instance: Any) -> None:
    assert not is_surely_valid(instance, schema)


@pytest.mark.parametrize(
    ("schema", "instance", "is_valid"),
    [
        ({"type": ["string", "null"]}, None, True),
        ({"type": "number"}, True, False),
        ({"const": 1}, 2, False),
        ({"enum": ["a", "b"]}, "b", True),
        ({"uniqueItems": True}, ["a", "a"], False),
        ({"uniqueItems": True}, [], True),
        ({"exclusiveMinimum": 0}, 0, False),
        ({"required": ["a"]}, {}, False),
        ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, False),
        ({"dependentRequired": {"a": ["b"]}}, {"b": 1}, True),
        ({"if": {"required": ["a"]}, "then": False}, {"a": 1}, False),
        ({"if": {"required": ["a"]}, "then": False}, {}, True),
        ({"if": {"required": ["a"]}, "else": False}, {}, False),
        ({"propertyNames": {"maxLength": 1}}, {"ab": 1}, False),
        ({"properties": {"a": True}, "additionalProperties": False}, {"a": 1}, True),
        ({"properties": {"a": True}, "additionalProperties": False}, {"b": 1}, False),
    ],
)
def test_its_keywords_mean_what_jsonschema_says(schema: Any, instance: Any, is_valid: bool) -> None:
    assert is_surely_valid(instance, schema) is is_valid
    assert jsonschema.Draft202012Validator(schema).is_valid(instance) is is_valid


def test_a_valid_configuration_is_loaded_without_jsonschema() -> None:
    code = (
        "import sys\n"
        "from rolemesh.config import schema, yamlread\n"
        "root = yamlread.read_yaml('{version: 1, models: {}}', 'f.yaml')\n"
        "assert schema.check_schema(root, 'node', is_lenient=False).findings == ()\n"
        "sys.exit('jsonschema' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
