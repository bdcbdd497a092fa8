"""Checks that both programs' trees need beyond their schemas. Pure: values in, findings out.

Every check takes the tree as it comes, valid or not, and stays silent where the schema speaks, so
that all problems can be told at once.
"""

from collections.abc import Iterator
from typing import Final

from rolemesh.address import UpstreamAddress
from rolemesh.config import tree
from rolemesh.config.tree import Finding, KeyPath, Node

_KEY_FORMS: Final = ("key", "key_sha256", "key_file")


def check_url(root: Node, path: KeyPath) -> Iterator[Finding]:
    """Find a base URL that cannot be connected to."""
    node = tree.find(root, path)
    if node is None or not isinstance(node.value, str):
        return
    try:
        UpstreamAddress.parse_url(node.value)
    except ValueError:
        # Not with its text: that quotes the URL with whatever password is in it.
        yield tree.mismatch(node, path, "http[s]://HOST[:PORT][/PREFIX]")


def check_named_keys(root: Node, path: KeyPath) -> Iterator[Finding]:
    """Find named keys that are not given in exactly one form."""
    for name, node in tree.entries(tree.find(root, path)).items():
        forms = [form for form in _KEY_FORMS if form in tree.entries(node)]
        if tree.is_mapping(node) and len(forms) != 1:
            expected = "expected exactly one of key, key_sha256 and key_file"
            message = f"{expected}, found {' and '.join(forms) or 'none'}"
            yield Finding(origin=node.origin, path=(*path, name), message=message)


def check_repeated_name(root: Node, section: str, field: str) -> Iterator[Finding]:
    """Find entries of `section` whose own `field` says another name than their key."""
    for name, node in tree.entries(tree.find(root, (section,))).items():
        given = tree.text_at(node, (field,))
        if given not in (None, name):
            path = (section, name, field)
            yield tree.mismatch(tree.entries(node)[field], path, f'"{name}", as its key says')
