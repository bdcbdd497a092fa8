"""What a schema cannot say about the gateway's tree. Pure: values in, findings out."""

import ipaddress
from collections.abc import Iterator
from typing import Final

from rolemesh.config import tree
from rolemesh.config.checks import check_named_keys, check_url
from rolemesh.config.taken_paths import check_added_paths
from rolemesh.config.tree import Finding, KeyPath, Node

_NETWORKS: Final = (("network", "allow_clients"), ("network", "allow_nodes"))
_HOST: Final = ("listen", "host")


def gateway_checks(root: Node) -> Iterator[Finding]:
    """Yield everything wrong or doubtful in the gateway's tree that its schema lets through."""
    yield from _default_model(root)
    yield from _open_listen(root)
    yield from check_named_keys(root, ("auth", "clients"))
    yield from check_named_keys(root, ("auth", "nodes"))
    yield from _client_roles(root)
    yield from check_added_paths(root)
    for path in _NETWORKS:
        yield from _networks(root, path)
    for alias in tree.entries(tree.find(root, ("models",))):
        yield from check_url(root, ("models", alias, "proxy_url"))
        yield from _doubled_version(root, alias)
        yield from _discovered_model_name(root, alias)
        yield from _fallback(root, alias)
        yield from _upstream_key(root, alias)


def _aliases(root: Node) -> frozenset[str] | None:
    """Return the aliases there are; None where roles may bring more, or nobody can tell."""
    from_roles = tree.find(root, ("aliases", "from_roles"))
    if from_roles is not None and from_roles.value is not False:
        return None
    models = tree.find(root, ("models",))
    if models is not None and not tree.is_mapping(models):
        return None
    return frozenset(tree.entries(models))


def _default_model(root: Node) -> Iterator[Finding]:
    aliases = _aliases(root)
    node = tree.find(root, ("default_model",))
    if node is None or aliases is None or not isinstance(node.value, str):
        return
    if node.value not in aliases:
        hint = tree.did_you_mean(node.value, aliases)
        yield tree.mismatch(node, ("default_model",), "an alias that models defines", hint)


def _client_roles(root: Node) -> Iterator[Finding]:
    aliases = _aliases(root)
    for name, client in tree.entries(tree.find(root, ("auth", "clients"))).items():
        for index, role in enumerate(tree.items(tree.find(client, ("roles",)))):
            if aliases is not None and isinstance(role.value, str) and role.value not in aliases:
                hint = tree.did_you_mean(role.value, aliases)
                message = f'"{role.value}" is no alias that models defines' + (hint and f"; {hint}")
                path = ("auth", "clients", name, "roles", index)
                yield Finding(origin=role.origin, path=path, message=message, is_warning=True)


def _open_listen(root: Node) -> Iterator[Finding]:
    auth = tree.find(root, ("auth",))
    is_open = tree.find(root, ("auth", "open"))
    has_keys = any(
        tree.items(tree.find(root, path)) or tree.entries(tree.find(root, path))
        for path in (("auth", "client_api_keys"), ("auth", "clients"))
    )
    if has_keys or (is_open is not None and is_open.value is True):
        return
    if auth is not None and not tree.is_mapping(auth):
        return
    for path, node in _hosts(root):
        if isinstance(node.value, str) and not is_loopback(node.value):
            remedy = (
                "without client keys anyone who reaches that address could use the models: set"
                " auth.client_api_keys or auth.clients, or permit it with auth: {open: true}"
            )
            yield tree.mismatch(node, path, "a loopback address", remedy)


def _hosts(root: Node) -> Iterator[tuple[KeyPath, Node]]:
    node = tree.find(root, _HOST)
    if node is None:
        return
    listed = tree.items(node)
    yield from (((*_HOST, index), item) for index, item in enumerate(listed))
    if not listed:
        yield _HOST, node


def is_loopback(host: str) -> bool:
    """Tell whether `host`, an address or a name, is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _networks(root: Node, path: KeyPath) -> Iterator[Finding]:
    for index, node in enumerate(tree.items(tree.find(root, path))):
        if not isinstance(node.value, str):
            continue
        try:
            ipaddress.ip_network(node.value)
        except ValueError:
            hint = _network_meant(node.value)
            yield tree.mismatch(node, (*path, index), "a network such as 10.0.0.0/24", hint)


def _network_meant(text: str) -> str:
    try:
        return f'did you mean "{ipaddress.ip_network(text, strict=False)}"?'
    except ValueError:
        return ""


def _fallback(root: Node, alias: str) -> Iterator[Finding]:
    known = _aliases(root)
    path = ("models", alias, "fallback")
    for index, node in enumerate(tree.items(tree.find(root, path))):
        if not isinstance(node.value, str):
            continue
        if node.value == alias:
            yield tree.mismatch(node, (*path, index), "another alias than its own")
        elif known is not None and node.value not in known:
            hint = tree.did_you_mean(node.value, known)
            yield tree.mismatch(node, (*path, index), "an alias that models defines", hint)


def _doubled_version(root: Node, alias: str) -> Iterator[Finding]:
    path = ("models", alias, "proxy_url")
    node = tree.find(root, path)
    if node is not None and str(node.value).rstrip("/").endswith("/v1"):
        message = "requests would go to .../v1/v1/...; leave /v1 out, unless that is meant"
        yield Finding(origin=node.origin, path=path, message=message, is_warning=True)


def _upstream_key(root: Node, alias: str) -> Iterator[Finding]:
    node = tree.find(root, ("models", alias))
    if node is not None and {"api_key", "api_key_file"} <= tree.entries(node).keys():
        message = "expected at most one of api_key and api_key_file, found both"
        yield Finding(origin=node.origin, path=("models", alias), message=message)


def _discovered_model_name(root: Node, alias: str) -> Iterator[Finding]:
    path = ("models", alias, "defaults", "model")
    node = tree.find(root, path)
    if node is not None and tree.text_at(root, ("models", alias, "type")) == "discovered":
        message = "no effect: what is sent to a node is the model_id that it announced"
        yield Finding(origin=node.origin, path=path, message=message, is_warning=True)
