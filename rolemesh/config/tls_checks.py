"""Where a tree says TLS, and what is wrong with the files that are named there."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from rolemesh.config import tree
from rolemesh.config.settings import ClientTls, ServerTls
from rolemesh.config.tls import find_faults
from rolemesh.config.tree import Finding, KeyPath, Node, Program

_SERVED: Final = ("listen", "tls")
_FOR_ALL: Final[Mapping[Program, tuple[KeyPath, ...]]] = {
    "gateway": (("nodes", "tls"),),
    "node": (),
}
_BY_NAME: Final[Mapping[Program, str]] = {"gateway": "models", "node": "gateways"}


def tls_findings(root: Node, program: Program) -> Iterator[Finding]:
    """Yield what is wrong with the files of every `tls`, and every `tls` that has no effect.

    Stays silent where the schema speaks.
    """
    yield from _file_findings(root, _SERVED)
    for path in _FOR_ALL[program]:
        yield from _file_findings(root, path)
    section = _BY_NAME[program]
    for name, node in tree.entries(tree.find(root, (section,))).items():
        path = (section, name, "tls")
        yield from _file_findings(root, path)
        url = tree.text_at(node, ("proxy_url",)) if program == "gateway" else name
        tls = tree.find(root, path)
        if tls is not None and url is not None and url.startswith("http://"):
            message = "no effect: the URL begins with http://"
            yield Finding(origin=tls.origin, path=path, message=message, is_warning=True)


def _file_findings(root: Node, path: KeyPath) -> Iterator[Finding]:
    node = tree.find(root, path)
    tls = None if node is None else _settings(node, is_server=path == _SERVED)
    if node is None or tls is None:
        return
    for fault in find_faults(tls):
        origin = tree.entries(node)[fault.key].origin
        yield Finding(
            origin=origin,
            path=(*path, fault.key),
            message=fault.message,
            is_warning=fault.is_warning,
        )


def _settings(node: Node, *, is_server: bool) -> ServerTls | ClientTls | None:
    """Return what a `tls` says, None where the schema finds something wrong with it."""
    files = {key: tree.text_at(node, (key,)) for key in tree.entries(node)}
    paths = {key: Path(text) for key, text in files.items() if text is not None}
    try:
        tls = ServerTls(**paths) if is_server else ClientTls(**paths)
    except TypeError:
        return None  # a key that is missing, or unknown
    return None if (tls.cert_file is None) != (tls.key_file is None) else tls
