"""Sections that the configurations of both programs have: valid tree -> settings."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from rolemesh.config import tree
from rolemesh.config.settings import ClientTls, Listen, ServerTls
from rolemesh.config.tree import KeyPath, Node

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    _Section = TypeVar("_Section", bound=DataclassInstance)
else:
    _Section = TypeVar("_Section")


def with_values(defaults: _Section, node: Node | None) -> _Section:
    """Return `defaults` with what `node` says in place of the fields it names."""
    given = {
        key: _like(getattr(defaults, key), child.value) for key, child in tree.entries(node).items()
    }
    return dataclasses.replace(defaults, **given)


def _like(default: Any, value: Any) -> Any:
    """Return a value as the field takes it: YAML's 5 may be a float there, and its 8000.0 an int."""
    return int(value) if default is None else type(default)(value)


def build_listen(root: Node, default_port: int) -> Listen:
    """Return where to listen."""
    host = value_at(root, ("listen", "host"), Listen(port=default_port).host)
    hosts = (host,) if isinstance(host, str) else tuple(host)
    return Listen(
        host=hosts,
        port=int(value_at(root, ("listen", "port"), default_port)),
        tls=_server_tls(tree.find(root, ("listen", "tls"))),
    )


def _server_tls(node: Node | None) -> ServerTls | None:
    if node is None:
        return None
    files = {key: Path(name) for key, name in tree.plain(node).items()}
    return ServerTls(**files)


def build_client_tls(node: Node | None) -> ClientTls | None:
    """Return how a server is verified, None where nothing is said."""
    if node is None:
        return None
    return ClientTls(**{key: Path(name) for key, name in tree.plain(node).items()})


def build_paths(root: Node) -> Mapping[str, int]:
    """Return the operator's own paths, and the slots that a request to each takes."""
    return MappingProxyType(
        {
            path: int(value_at(node, ("slots",), 1))
            for path, node in tree.entries(tree.find(root, ("paths",))).items()
        }
    )


def value_at(root: Node, path: KeyPath, default: Any) -> Any:
    """Return what stands at `path` as plain values, `default` where there is nothing."""
    node = tree.find(root, path)
    return default if node is None else tree.plain(node)


def arguments_at(root: Node, path: KeyPath) -> tuple[str, ...]:
    """Return a list of command-line arguments; numbers as they were meant."""
    return tuple(map(str, value_at(root, path, ())))
