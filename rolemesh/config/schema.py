"""The JSON Schema of a program's configuration, and what a tree violates of it.

The schemas are package data, so that other tools can use them too. What a message says was
expected is the schema's own wording (`x-expected`), so schema and messages cannot drift apart.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rolemesh.config import tree
from rolemesh.config.quick_check import is_surely_valid
from rolemesh.config.tree import Finding, KeyPath, Node, Program
from rolemesh.errors import ConfigError, Problem

_REFERENCE: Final = "#/$defs/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The tree (without its unknown keys where these are let through), and what is wrong."""

    root: Node
    findings: tuple[Finding, ...]


@functools.cache
def load_schema(program: Program) -> Mapping[str, Any]:
    """Return the JSON Schema of `program`'s merged tree."""
    # Not by importlib.resources: that is slow to load.
    path = Path(__file__).parent / "schemas" / f"{program}.json"
    schema: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


def _validator(schema: Mapping[str, Any]) -> Any:
    """Return what explains each violation; raises ConfigError where that cannot be loaded."""
    try:
        # Imported here: it is slow to load, and hardly ever needed.
        import jsonschema  # noqa: PLC0415
    except Exception as err:  # a half-replaced library may raise anything
        message = (
            "is wrong, and what is wrong cannot be told, because jsonschema cannot be loaded "
            f"({err}): it was replaced since this program started; start the program anew, or ask "
            "`rolemeshctl config check`"
        )
        problem = Problem(where="the configuration", key="", message=message)
        raise ConfigError((problem,)) from err
    return jsonschema.Draft202012Validator(schema)


def check_schema(root: Node, program: Program, *, is_lenient: bool) -> Checked:
    """Return every violation of `program`'s schema in `root`.

    `is_lenient`: unknown keys are warnings, and are dropped. Raises ConfigError where jsonschema is
    needed and cannot be loaded.
    """
    schema, plain = load_schema(program), tree.plain(root)
    if is_surely_valid(plain, schema):
        return Checked(root=root, findings=())
    validator = _validator(schema)
    findings: dict[KeyPath, Finding] = {}
    unknown: set[KeyPath] = set()
    for error in validator.iter_errors(plain):
        for found in _findings(root, schema, error, is_lenient=is_lenient):
            # Of several complaints about one value the first is the plainest.
            findings.setdefault(found.path, found)
        unknown |= _unknown_keys(error)
    if is_lenient:
        root = tree.without(root, frozenset(unknown))
    return Checked(root=root, findings=tuple(findings.values()))


# `error` is a jsonschema ValidationError, whose types say that any part of it may be missing.


def _findings(
    root: Node, schema: Mapping[str, Any], error: Any, *, is_lenient: bool
) -> Iterator[Finding]:
    path: KeyPath = tuple(error.absolute_path)
    node = _existing(root, path)
    match error.validator:
        case "additionalProperties":
            for unknown in sorted(_unknown_keys(error), key=str):
                yield _unknown_key(root, unknown, error.schema, is_lenient=is_lenient)
        case "required":
            for key in error.validator_value:
                if key not in error.instance:
                    expected = _expected(schema, error.schema["properties"][key])
                    message = f"expected {expected}, found nothing"
                    yield Finding(origin=node.origin, path=(*path, key), message=message)
        case _ if "propertyNames" in error.absolute_schema_path:
            key = error.instance
            message = f"expected {_expected(schema, error.schema)} as key"
            yield Finding(
                origin=_existing(root, (*path, key)).origin, path=(*path, key), message=message
            )
        case _:
            yield tree.mismatch(node, path, _expected(schema, error.schema), _remedy(node, error))


def _remedy(node: Node, error: Any) -> str:
    wants_string = error.validator == "type" and error.validator_value == "string"
    return "put it in quotes" if wants_string and isinstance(node.value, int | float) else ""


def _existing(root: Node, path: KeyPath) -> Node:
    node = tree.find(root, path)
    return root if node is None else node


def _unknown_keys(error: Any) -> set[KeyPath]:
    if error.validator != "additionalProperties":
        return set()
    path = tuple(error.absolute_path)
    return {(*path, key) for key in error.instance if key not in error.schema["properties"]}


def _unknown_key(
    root: Node, path: KeyPath, schema: Mapping[str, Any], *, is_lenient: bool
) -> Finding:
    hint = tree.did_you_mean(str(path[-1]), schema["properties"])
    message = "unknown key" + (" (ignored)" if is_lenient else "") + f"; {hint}"
    origin = _existing(root, path).origin
    return Finding(origin=origin, path=path, message=message, is_warning=is_lenient)


def _expected(schema: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    reference = part.get("$ref", "")
    if "x-expected" not in part and reference.startswith(_REFERENCE):
        part = schema["$defs"][reference.removeprefix(_REFERENCE)]
    expected: str = part["x-expected"]
    return expected
