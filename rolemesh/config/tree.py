"""Configuration values that know where they were written, and what is found wrong with them.

A tree is made of Nodes: mappings of Nodes, lists of Nodes, scalars. Nothing here knows which keys
exist. A node's value is never in its repr: it may be a key.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from rolemesh.errors import Problem

Program = Literal["gateway", "node"]
Scalar = str | int | float | bool | None
KeyPath = tuple[str | int, ...]

_LONGEST_SHOWN: Final = 60
_WORD: Final = re.compile(r"[A-Za-z0-9_-]+")
_USER_PART: Final = re.compile(r"(?<=://)[^/@\s]*@")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written: a file and its line, or the name of an option or variable."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One value. In a mapping, `origin` is the line of its key.

    `replaced` is the value that this one displaced when trees were merged.
    """

    value: "Scalar | tuple[Node, ...] | Mapping[str, Node]" = field(repr=False)
    origin: Origin
    replaced: "Node | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong, or (a warning) merely doubtful, at one place of a tree."""

    origin: Origin
    path: KeyPath = ()
    message: str
    is_warning: bool = False

    def problem(self) -> Problem:
        """Return it in the form that people read."""
        return Problem(where=str(self.origin), key=dotted(self.path), message=self.message)


def empty(source: str) -> Node:
    """Return a mapping with nothing in it."""
    return Node(value={}, origin=Origin(source))


def nested(path: tuple[str, ...], value: Any, origin: Origin) -> Node:
    """Return a tree that holds only `value` (a scalar, or a list of them) at `path`."""
    leaf = tuple(Node(value=item, origin=origin) for item in value) if _is_list(value) else value
    node = Node(value=leaf, origin=origin)
    for key in reversed(path):
        node = Node(value={key: node}, origin=origin)
    return node


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def is_mapping(node: Node) -> bool:
    """Tell whether `node` is a mapping."""
    return isinstance(node.value, Mapping)


def entries(node: Node | None) -> Mapping[str, Node]:
    """Return the entries of a mapping; of anything else, none."""
    return node.value if node is not None and isinstance(node.value, Mapping) else {}


def items(node: Node | None) -> tuple[Node, ...]:
    """Return the items of a list; of anything else, none."""
    return node.value if node is not None and isinstance(node.value, tuple) else ()


def find(node: Node, path: KeyPath) -> Node | None:
    """Return the node at `path`, None where there is nothing."""
    found: Node | None = node
    for key in path:
        if isinstance(key, int):
            listed = items(found)
            found = listed[key] if key < len(listed) else None
        else:
            found = entries(found).get(key)
    return found


def text_at(node: Node, path: KeyPath) -> str | None:
    """Return the string at `path`; None where there is nothing or something else."""
    found = find(node, path)
    return found.value if found is not None and isinstance(found.value, str) else None


def walk(node: Node, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
    """Yield every node with its path, the outer ones first."""
    yield path, node
    for key, child in entries(node).items():
        yield from walk(child, (*path, key))
    for index, child in enumerate(items(node)):
        yield from walk(child, (*path, index))


def plain(node: Node) -> Any:
    """Return the tree as dicts, lists and scalars."""
    if isinstance(node.value, Mapping):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, tuple):
        return [plain(child) for child in node.value]
    return node.value


def without(node: Node, paths: frozenset[KeyPath], path: KeyPath = ()) -> Node:
    """Return the tree without the mapping entries at `paths`."""
    if isinstance(node.value, tuple):
        kept = tuple(without(child, paths, (*path, i)) for i, child in enumerate(node.value))
        return Node(value=kept, origin=node.origin, replaced=node.replaced)
    if not isinstance(node.value, Mapping):
        return node
    left = {
        key: without(child, paths, (*path, key))
        for key, child in node.value.items()
        if (*path, key) not in paths
    }
    return Node(value=left, origin=node.origin, replaced=node.replaced)


def dotted(path: KeyPath) -> str:
    """Return `path` as people write it: `models."qwen2.5".roles[0]`."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += ("." if text else "") + _quoted_unless_word(_USER_PART.sub("...@", key))
    return text


def _quoted_unless_word(key: str) -> str:
    is_word = _WORD.fullmatch(key) is not None
    return key if is_word else json.dumps(key, ensure_ascii=False)


def holds_key(path: KeyPath) -> bool:
    """Tell whether the value at `path` may be a key or its digest, which no message shows.

    Anything under `auth` and `gateways` may be a key that was put in the wrong place, except
    where only something else is ever written.
    """
    match path:
        case ("auth", "open") | ("gateways", _, "url"):
            return False
        case ("auth", _, _, "roles" | "priority" | "max_concurrent" | "requests_per_minute", *_):
            return False
        case ("auth", _, _, "admin"):
            return False
        case ("auth" | "gateways", *_) | ("models", _, "api_key" | "api_key_file"):
            return True
        case _:
            return False


def shown(node: Node | None, path: KeyPath) -> str:
    """Return what stands at `path` in the words of an error message; never a key."""
    if node is None:
        return "nothing"
    if isinstance(node.value, Mapping):
        return "a mapping"
    if isinstance(node.value, tuple):
        return "a list" if node.value else "an empty list"
    if node.value is not None and holds_key(path):
        return "a string" if isinstance(node.value, str) else "a number or boolean"
    text = _USER_PART.sub("...@", json.dumps(node.value, ensure_ascii=False))
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


def mismatch(node: Node, path: KeyPath, expected: str, remedy: str = "") -> Finding:
    """Return the finding that `node`, which stands at `path`, is not what was expected there."""
    message = f"expected {expected}, found {shown(node, path)}"
    if node.replaced is not None:
        message += f" (was {shown(node.replaced, path)} from {node.replaced.origin})"
    return Finding(origin=node.origin, path=path, message=message + (remedy and f"; {remedy}"))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `did you mean "..."?` for the nearest of `known`, else what is known, else ""."""
    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if near:
        return f'did you mean "{near[0]}"?'
    return f"known here: {', '.join(words)}" if words else ""
