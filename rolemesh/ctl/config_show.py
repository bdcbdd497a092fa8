"""`rolemeshctl config show KEY`: the merged value, and where each part of it was set.

What no file sets is shown with its default, as the schema has it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rolemesh.config import tree
from rolemesh.config.dropins import ConfigSource, read_fragments
from rolemesh.config.merge import SHAPES, merge
from rolemesh.config.schema import load_schema
from rolemesh.config.tree import KeyPath, Node
from rolemesh.ctl import output
from rolemesh.ctl.config_cat import is_secret
from rolemesh.ctl.outcomes import EXIT_CONFIG, EXIT_OK, BadUsage, NotThere

HIDDEN: Final = "(hidden)"
DEFAULT: Final = "default"

_WORD: Final = re.compile(r'\.?(?:"((?:[^"\\]|\\.)*)"|\[(\d+)\]|([^."\[\]]+))')
_USER_PART: Final = re.compile(r"(?<=://)[^/@\s]*@")
_Found = dict[str, Any]


def run(source: ConfigSource, key: str, *, as_json: bool) -> int:
    """Print what stands at `key`."""
    reading = read_fragments(source)
    root = merge(reading.fragments, SHAPES[source.program]).root
    path = _resolved(root, parse_key(key))
    found = [*_set(root, path), *_defaults(source, root, path)]
    problems = [each.problem() for each in reading.findings if not each.is_warning]
    for problem in problems:
        output.note(str(problem))
    if not found:
        raise _nothing(root, path, source)
    if as_json:
        output.put_json({"key": tree.dotted(path), "values": found})
    else:
        output.put_table(("KEY", "VALUE", "SET BY", "WAS"), map(_row, found))
    return EXIT_CONFIG if problems else EXIT_OK


def parse_key(text: str) -> KeyPath:
    """Return a key as people write it, `models."qwen2.5".roles[0]`, as a path."""
    path: list[str | int] = []
    at = 0
    while at < len(text):
        word = _WORD.match(text, at)
        if word is None:
            msg = f'{text!r} is not a key such as listen.port or models."qwen2.5".roles[0]'
            raise BadUsage(msg)
        quoted, index, plain = word.groups()
        path.append(int(index) if index else plain or str(json.loads(f'"{quoted}"')))
        at = word.end()
    return tuple(path)


def _resolved(root: Node, path: KeyPath) -> KeyPath:
    """Return `path` with words joined again that are one name with dots in it."""
    for count in range(1, len(path) + 1):
        head, rest = path[:count], path[count:]
        name = ".".join(map(str, head)) if all(isinstance(word, str) for word in head) else head[0]
        child = tree.find(root, (name,))
        if child is not None:
            return (name, *_resolved(child, rest))
    return path


def shown_value(node: Node, path: KeyPath) -> str:
    """Return a value without parts as text; never a key."""
    if isinstance(node.value, Mapping | tuple):
        return "{}" if isinstance(node.value, Mapping) else "[]"
    if is_secret(path, node.value):
        return HIDDEN
    return _USER_PART.sub("...@", json.dumps(node.value, ensure_ascii=False))


def _set(root: Node, path: KeyPath) -> Iterator[_Found]:
    start = tree.find(root, path)
    if start is None:
        return
    for below, node in tree.walk(start, path):
        if below and not (tree.entries(node) or tree.items(node)):
            yield {
                "key": tree.dotted(below),
                "value": shown_value(node, below),
                "where": str(node.origin),
                "was": _was(node, below),
                "is_default": False,
            }


def _was(node: Node, path: KeyPath) -> dict[str, str] | None:
    old = node.replaced
    if old is None:
        return None
    has_parts = bool(tree.entries(old) or tree.items(old))
    value = tree.shown(old, path) if has_parts else shown_value(old, path)
    return {"value": value, "where": str(old.origin)}


def _row(found: _Found) -> tuple[object, ...]:
    was = found["was"]
    return (
        found["key"],
        found["value"],
        found["where"],
        was and f"{was['value']} from {was['where']}",
    )


def _defaults(source: ConfigSource, root: Node, wanted: KeyPath) -> Iterator[_Found]:
    schema = load_schema(source.program)
    for path, value in _default_values(schema, schema, root, ()):
        if path[: len(wanted)] == wanted and tree.find(root, path) is None:
            yield {
                "key": tree.dotted(path),
                "value": json.dumps(value, ensure_ascii=False),
                "where": DEFAULT,
                "was": None,
                "is_default": True,
            }


def _default_values(
    schema: Mapping[str, Any], part: Mapping[str, Any], node: Node | None, path: KeyPath
) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every default of the schema that applies to the tree, with its path."""
    reference = part.get("$ref")
    if reference:
        part = {**schema["$defs"][reference.rpartition("/")[2]], **part}
    if path and path[0] == "models" and path[-1] == "timeouts":
        return  # an alias without timeouts of its own has those at the top
    if "default" in part:
        yield path, part["default"]
    for name, child in _parts(part, node):
        yield from _default_values(schema, child, tree.entries(node).get(name), (*path, name))
    for choice in part.get("allOf", ()):
        kind = choice.get("if", {}).get("properties", {}).get("type", {}).get("const")
        if node is not None and tree.text_at(node, ("type",)) == kind:
            yield from _default_values(schema, choice["then"], node, path)


def _parts(part: Mapping[str, Any], node: Node | None) -> Sequence[tuple[str, Mapping[str, Any]]]:
    """Return the schemas of what may or does stand below a value, by key."""
    properties = part.get("properties", {})
    named = [(name, child) for name, child in properties.items() if isinstance(child, dict)]
    any_name = part.get("additionalProperties")
    if isinstance(any_name, dict):
        named += [(name, any_name) for name in tree.entries(node) if name not in properties]
    return named


def _nothing(root: Node, path: KeyPath, source: ConfigSource) -> NotThere:
    if not path:
        return NotThere(f"no file sets anything for the {source.program}")
    parent = tree.entries(tree.find(root, path[:-1]))
    known = parent or load_schema(source.program)["properties"]
    hint = tree.did_you_mean(str(path[-1]), known) if len(path) == 1 or parent else ""
    return NotThere(f"{tree.dotted(path)} is not set and has no default; {hint}".rstrip("; "))
