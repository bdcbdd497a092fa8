"""Several trees -> one. Dropping a file adds; it never removes what other files said.

Mappings merge by key, the later tree wins. Lists of things that have a key (`models` by
`model_id`) become mappings first. Lists of keys are sets. Any other list, and every scalar, is
replaced. `null` deletes, and where lists add up an empty list starts afresh.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from rolemesh.config import tree
from rolemesh.config.tree import Finding, KeyPath, Node, Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Which lists of a program's tree add up.

    `keyed`: sections that are lists of things with a key, and the field that is the key.
    `sets`: lists whose items are told apart by value.
    """

    keyed: Mapping[str, str] = field(default_factory=dict)
    sets: frozenset[KeyPath]


SHAPES: Final[Mapping[Program, Shape]] = {
    "gateway": Shape(sets=frozenset({("auth", "client_api_keys"), ("auth", "node_api_keys")})),
    "node": Shape(
        keyed={"models": "model_id", "gateways": "url"},
        sets=frozenset({("auth", "api_keys")}),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The tree, and the list items that could not be merged for want of a key."""

    root: Node
    findings: tuple[Finding, ...]


def merge(fragments: Iterable[Node], shape: Shape) -> Merged:
    """Return all `fragments` as one tree, later ones over earlier ones."""
    findings: list[Finding] = []
    root = tree.empty("(no configuration)")
    for fragment in fragments:
        root = _merged(root, _keyed(fragment, shape, findings), (), shape)
    return Merged(root=root, findings=tuple(findings))


def _keyed(fragment: Node, shape: Shape, findings: list[Finding]) -> Node:
    """Return `fragment` with its lists of keyed things as mappings, but for empty lists."""
    rewritten = dict(tree.entries(fragment))
    for section, key in shape.keyed.items():
        node = rewritten.get(section)
        if node is not None and tree.items(node):
            rewritten[section] = _as_mapping(node, (section,), key, findings)
    return replace(fragment, value=rewritten)


def _as_mapping(node: Node, path: KeyPath, key: str, findings: list[Finding]) -> Node:
    found: dict[str, Node] = {}
    for index, item in enumerate(tree.items(node)):
        name = tree.text_at(item, (key,))
        if name is None:
            findings.append(_without_key(item, (*path, index), key))
        elif name in found:
            first = found[name].origin.line
            message = f"expected once in a file, found again (first at line {first})"
            findings.append(Finding(origin=item.origin, path=(*path, name), message=message))
        else:
            found[name] = item
    return replace(node, value=found)


def _without_key(item: Node, path: KeyPath, key: str) -> Finding:
    if not isinstance(item.value, Mapping):
        return tree.mismatch(item, path, f"a mapping with {key}")
    given = item.value.get(key)
    if given is not None:
        return tree.mismatch(given, (*path, key), "a string")
    message = "expected a string, found nothing"
    return Finding(origin=item.origin, path=(*path, key), message=message)


def _merged(lower: Node | None, higher: Node, path: KeyPath, shape: Shape) -> Node:
    """Return `higher` over `lower`; None where there is nothing below."""
    if len(path) == 1 and path[0] in shape.keyed and higher.value == ():
        return replace(higher, value={}, replaced=lower)
    if path in shape.sets and isinstance(higher.value, tuple):
        return _union(lower, higher)
    if isinstance(higher.value, Mapping):
        return _merged_mapping(lower, higher, path, shape)
    return replace(higher, replaced=lower)


def _merged_mapping(lower: Node | None, higher: Node, path: KeyPath, shape: Shape) -> Node:
    result = dict(tree.entries(lower))
    for key, node in tree.entries(higher).items():
        if node.value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), node, (*path, key), shape)
    is_mapping_below = lower is None or isinstance(lower.value, Mapping)
    return replace(higher, value=result, replaced=None if is_mapping_below else lower)


def _union(lower: Node | None, higher: Node) -> Node:
    items = tree.items(higher)
    if not items:
        return replace(higher, replaced=lower)
    by_value: dict[str, Node] = {}
    for item in (*tree.items(lower), *items):
        by_value.setdefault(repr(tree.plain(item)), item)
    return replace(higher, value=tuple(by_value.values()))
