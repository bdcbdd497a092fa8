"""What a schema cannot say about the node's tree. Pure: values in, findings out."""

from collections.abc import Iterator

from rolemesh.config import tree
from rolemesh.config.checks import (
    check_named_keys,
    check_repeated_name,
    check_url,
)
from rolemesh.config.taken_paths import check_added_paths
from rolemesh.config.tree import Finding, Node


def node_checks(root: Node) -> Iterator[Finding]:
    """Yield everything wrong or doubtful in the node's tree that its schema lets through."""
    yield from check_url(root, ("advertise_url",))
    yield from _advertised_scheme(root)
    yield from check_named_keys(root, ("auth", "clients"))
    yield from check_repeated_name(root, "gateways", "url")
    yield from check_repeated_name(root, "models", "model_id")
    yield from check_added_paths(root)
    yield from _gateways(root)
    yield from _instance_models(root)
    yield from _instance_gpus(root)
    yield from _exclusive(root, "chat_template", "chat_template_file")
    yield from _exclusive(root, "embeddings", "rerank")


def _advertised_scheme(root: Node) -> Iterator[Finding]:
    node = tree.find(root, ("advertise_url",))
    has_tls = tree.find(root, ("listen", "tls")) is not None
    if node is not None and has_tls and str(node.value).startswith("http://"):
        message = "listen.tls serves https:// only, so gateways would not reach this address"
        path = ("advertise_url",)
        yield Finding(origin=node.origin, path=path, message=message, is_warning=True)


def _gateways(root: Node) -> Iterator[Finding]:
    for url, node in tree.entries(tree.find(root, ("gateways",))).items():
        yield from _gateway_url(node, url)
        if {"api_key", "api_key_file"} <= tree.entries(node).keys():
            message = "expected at most one of api_key and api_key_file, found both"
            yield Finding(origin=node.origin, path=("gateways", url), message=message)


def _gateway_url(node: Node, url: str) -> Iterator[Finding]:
    path = ("gateways", url, "url")
    # In a mapping of gateways the URL is the key, and may stand nowhere else.
    named = tree.nested(path, url, node.origin)
    yield from check_url(named, path)


def _instance_models(root: Node) -> Iterator[Finding]:
    models = tree.find(root, ("models",))
    if models is not None and not tree.is_mapping(models):
        return
    known = tree.entries(models)
    for name in tree.entries(tree.find(root, ("instances",))):
        path = ("instances", name, "model")
        node = tree.find(root, path)
        if node is not None and isinstance(node.value, str) and node.value not in known:
            hint = tree.did_you_mean(node.value, known)
            yield tree.mismatch(node, path, "a model_id that models defines", hint)


def _instance_gpus(root: Node) -> Iterator[Finding]:
    for name in tree.entries(tree.find(root, ("instances",))):
        path = ("instances", name, "gpus")
        node = tree.find(root, path)
        numbers = [] if node is None else tree.plain(node)
        own = name.removeprefix("gpu").partition("-")[0] if name.startswith("gpu") else ""
        if node is not None and isinstance(numbers, list) and numbers and str(numbers[0]) != own:
            expected = f"a list that begins with {own}, its own GPU" if own else "no gpus"
            yield tree.mismatch(node, path, expected)


def _exclusive(root: Node, one: str, other: str) -> Iterator[Finding]:
    """Refuse models that have both of two keys, unless either is false."""
    for model_id, node in tree.entries(tree.find(root, ("models",))).items():
        both = [tree.find(node, (key,)) for key in (one, other)]
        if all(each is not None and each.value is not False for each in both):
            message = f"expected at most one of {one} and {other}, found both"
            yield Finding(origin=node.origin, path=("models", model_id), message=message)
