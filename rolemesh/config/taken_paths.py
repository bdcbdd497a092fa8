"""The paths that an operator cannot add, because gateways or agents answer them themselves."""

from collections.abc import Iterator
from typing import Final

from rolemesh.config import tree
from rolemesh.config.tree import Finding, Node

_OWN: Final = ("/health", "/metrics", "/models", "/openapi.json", "/ready")
_OWN_TREES: Final = ("/v1/models/", "/v1/node/", "/v1/nodes/", "/v1/rolemesh/", "/ui/")

_BUILT_IN: Final = frozenset(
    f"{version}/{name}"
    for version in ("", "/v1")
    for name in (
        "chat/completions",
        "completions",
        "embeddings",
        "rerank",
        "reranking",
        "responses",
        "responses/input_tokens",
        "messages",
        "messages/count_tokens",
        "tokenize",
        "detokenize",
        "apply-template",
    )
)


def check_added_paths(root: Node) -> Iterator[Finding]:
    """Find paths among the operator's own that are there already."""
    for path, node in tree.entries(tree.find(root, ("paths",))).items():
        if path in _BUILT_IN:
            message = "is relayed anyway; remove it"
        elif path in _OWN or f"{path}/".startswith(_OWN_TREES):
            message = "is answered by RoleMesh itself; expected another path"
        else:
            continue
        yield Finding(origin=node.origin, path=("paths", path), message=message)
