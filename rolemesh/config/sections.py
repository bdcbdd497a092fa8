"""Sections that the configurations of both programs have: valid tree -> settings."""

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

from rolemesh.config import tree
from rolemesh.config.settings import Listen
from rolemesh.config.tree import KeyPath, Node

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    _Section = TypeVar("_Section", bound=DataclassInstance)
else:
    _Section = TypeVar("_Section")


def with_values(defaults: _Section, node: Node | None) -> _Section:
    """Return `defaults` with what `node` says in place of the fields it names."""
    given = {
        # YAML's 5 is a float where the field is one, and its 8000.0 an int.
        key: type(getattr(defaults, key))(child.value)
        for key, child in tree.entries(node).items()
    }
    return dataclasses.replace(defaults, **given)


def build_listen(root: Node, default_port: int) -> Listen:
    """Return where to listen."""
    host = value_at(root, ("listen", "host"), Listen(port=default_port).host)
    hosts = (host,) if isinstance(host, str) else tuple(host)
    return Listen(host=hosts, port=int(value_at(root, ("listen", "port"), default_port)))


def value_at(root: Node, path: KeyPath, default: Any) -> Any:
    """Return what stands at `path` as plain values, `default` where there is nothing."""
    node = tree.find(root, path)
    return default if node is None else tree.plain(node)


def arguments_at(root: Node, path: KeyPath) -> tuple[str, ...]:
    """Return a list of command-line arguments; numbers as they were meant."""
    return tuple(map(str, value_at(root, path, ())))
