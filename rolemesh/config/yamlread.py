"""One YAML file -> a tree whose every node knows its line.

The structure is YAML 1.1 as PyYAML parses it, the plain scalars are YAML 1.2's core schema: only
`true` and `false` are booleans, `1:30` and `2024-01-01` are strings, and so is any number that is
not finite. Keys are always strings. Anchors, aliases and merge keys (`<<`) work; what they expand
to is bounded, as is the depth.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import isfinite
from typing import Any, Final, NamedTuple

import yaml

from rolemesh.config.tree import Finding, KeyPath, Node, Origin, Scalar, dotted

MAX_DEPTH: Final = 50
MAX_NODES: Final = 100_000

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LONGEST_NUMBER: Final = 40
_WORDS: Final[Mapping[str, Scalar]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_UNPRINTABLE: Final = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)
_STRING_TAG: Final = "tag:yaml.org,2002:str"


class YamlError(Exception):
    """The file cannot be read as YAML; `findings` say where and why, without quoting values."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        super().__init__("; ".join(str(finding.problem()) for finding in findings))
        self.findings = findings


def read_yaml(text: str, source: str) -> Node | None:
    """Return the tree in `text`, None when it holds no document.

    `source` is what origins call the file. Raises YamlError: a syntax error ends the reading,
    duplicate keys are all found first.
    """
    unprintable = _UNPRINTABLE.search(text)
    if unprintable:
        line = text.count("\n", 0, unprintable.start()) + 1
        message = f"not valid YAML: character U+{ord(unprintable.group()):04X} is not allowed"
        raise YamlError((Finding(origin=Origin(source, line), message=message),))
    composer = _Composer(source, text)
    root = composer.document()
    if composer.findings:
        raise YamlError(tuple(composer.findings))
    return root


def resolve_scalar(text: str) -> Scalar:
    """Return what an unquoted `text` means: null, a boolean, a number, or itself."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _LONGEST_NUMBER:
        return text
    if _INTEGER.fullmatch(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base)
    if _FLOAT.fullmatch(text) and isfinite(float(text)):
        return float(text)
    return text


class _Anchor(NamedTuple):
    """A node that aliases may repeat; `nodes` and `height` are its size when expanded."""

    node: Node
    nodes: int
    height: int


class _Composer:
    """Builds nodes from parser events; `findings` collects what does not stop it."""

    def __init__(self, source: str, text: str) -> None:
        self.findings: list[Finding] = []
        self._source = source
        self._events = self._parsed(text)
        self._anchors: dict[str, _Anchor] = {}
        self._composed = 0
        self._deepest = 0

    def document(self) -> Node | None:
        """Return the root of the only document."""
        root = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise self._failure(event, "expected one document, a second one begins here")
                root = self._node(next(self._events), ())
        return root

    def _parsed(self, text: str) -> Iterator[Any]:
        try:
            yield from yaml.parse(text, Loader=_LOADER)
        except yaml.YAMLError as error:
            # Not chained: the library's error quotes the text around it, which may hold a key.
            raise YamlError((*self.findings, _syntax_finding(error, text, self._source))) from None

    def _failure(self, event: Any, message: str, path: KeyPath = ()) -> YamlError:
        found = Finding(origin=self._origin(event), path=path, message=message)
        return YamlError((*self.findings, found))

    def _origin(self, event: Any) -> Origin:
        return Origin(self._source, event.start_mark.line + 1)

    def _account(self, event: Any, *, nodes: int, depth: int) -> None:
        self._composed += nodes
        self._deepest = max(self._deepest, depth)
        if self._composed > MAX_NODES:
            raise self._failure(event, f"expected at most {MAX_NODES} values (aliases expanded)")
        if depth > MAX_DEPTH:
            raise self._failure(event, f"expected at most {MAX_DEPTH} levels")

    def _node(self, event: Any, path: KeyPath) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path)
        if event.tag is not None and event.tag != _STRING_TAG:
            message = 'expected no tag; quote a value that begins with "!"'
            raise self._failure(event, message, path)
        before, outer = self._composed, self._deepest
        self._deepest = 0
        self._account(event, nodes=1, depth=len(path))
        node = Node(value=self._value(event, path), origin=self._origin(event))
        if event.anchor is not None:
            height = self._deepest - len(path)
            self._anchors[event.anchor] = _Anchor(node, self._composed - before, height)
        self._deepest = max(outer, self._deepest)
        return node

    def _alias(self, event: Any, path: KeyPath) -> Node:
        anchor = self._anchors.get(event.anchor)
        if anchor is None:
            message = 'expected the name of an anchor above; quote a value that begins with "*"'
            raise self._failure(event, message, path)
        self._account(event, nodes=anchor.nodes, depth=len(path) + anchor.height)
        return replace(anchor.node, origin=self._origin(event))

    def _value(self, event: Any, path: KeyPath) -> "Scalar | tuple[Node, ...] | dict[str, Node]":
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            numbered = zip(itertools.count(), self._until(yaml.SequenceEndEvent), strict=False)
            return tuple(self._node(item, (*path, index)) for index, item in numbered)
        is_plain = event.implicit[0] and event.tag is None
        text: str = event.value
        return resolve_scalar(text) if is_plain else text

    def _until(self, end: type) -> Iterator[Any]:
        while not isinstance(event := next(self._events), end):
            yield event

    def _mapping(self, path: KeyPath) -> dict[str, Node]:
        found: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for event in self._until(yaml.MappingEndEvent):
            key = self._key(event, path)
            here = (*path, key)
            node = self._node(next(self._events), here)
            if key == "<<" and event.implicit[0]:
                merged.update(self._merge_key(event, node, here))
            elif key in found:
                self.findings.append(_duplicate(found[key], self._origin(event), here))
            else:
                found[key] = replace(node, origin=self._origin(event))
        return {**merged, **found}

    def _key(self, event: Any, path: KeyPath) -> str:
        if not isinstance(event, yaml.ScalarEvent) or not event.value:
            where = dotted(path) or "the file"
            raise self._failure(event, f"expected a name as key in {where}")
        key: str = event.value
        return key

    def _merge_key(self, event: Any, node: Node, path: KeyPath) -> dict[str, Node]:
        merged: dict[str, Node] = {}
        # Of several mappings the first one wins, so it is applied last.
        for part in reversed(node.value if isinstance(node.value, tuple) else (node,)):
            if not isinstance(part.value, Mapping):
                message = "expected a mapping, or a list of mappings, to merge"
                raise self._failure(event, message, path)
            merged.update(part.value)
        return merged


def _syntax_finding(error: yaml.YAMLError, text: str, source: str) -> Finding:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return Finding(origin=Origin(source), message="not valid YAML")
    line = error.problem_mark.line + 1
    message = f"not valid YAML: {error.problem}"
    if error.context and error.context_mark and error.context_mark.line + 1 != line:
        message += f" ({error.context} that begins at line {error.context_mark.line + 1})"
    at_fault = text.split("\n")[line - 1] if line <= text.count("\n") + 1 else ""
    if at_fault.lstrip(" ").startswith("\t"):
        message += "; indent with spaces, not with tabs"
    return Finding(origin=Origin(source, line), message=message)


def _duplicate(first: Node, again: Origin, path: KeyPath) -> Finding:
    message = f"expected once in a file, found again (first at line {first.origin.line})"
    return Finding(origin=again, path=path, message=message)
