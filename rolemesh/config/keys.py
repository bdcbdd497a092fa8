"""The keys in a tree: who holds them, which files hold them, and who else could read them.

A key is kept only as its SHA-256, except where this program has to present it itself. No message
shows one.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rolemesh.config import tree
from rolemesh.config.settings import ClientKey, Priority
from rolemesh.config.tree import Finding, KeyPath, Node, Origin, Program
from rolemesh.names import Alias

MAX_KEY_BYTES: Final = 4096

_FILE_FIELDS: Final = frozenset({"key_file", "api_key_file"})
_KEY_FIELDS: Final = frozenset({"key", "api_key"})
_KEY_LISTS: Final = frozenset({"client_api_keys", "node_api_keys", "api_keys"})


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFiles:
    """What the files named in a tree hold, by the path of the value that names them."""

    texts: Mapping[KeyPath, str] = field(default_factory=dict, repr=False)
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySection:
    """Where one group of accepted keys stands; `prefix` names those that have no name."""

    listed: KeyPath
    named: KeyPath
    prefix: str


CLIENT_KEYS: Final = KeySection(
    listed=("auth", "client_api_keys"), named=("auth", "clients"), prefix="client"
)
NODE_KEYS: Final = KeySection(
    listed=("auth", "node_api_keys"), named=("auth", "nodes"), prefix="node"
)
AGENT_KEYS: Final = KeySection(
    listed=("auth", "api_keys"), named=("auth", "clients"), prefix="client"
)
SECTIONS: Final[Mapping[Program, tuple[KeySection, ...]]] = {
    "gateway": (CLIENT_KEYS, NODE_KEYS),
    "node": (AGENT_KEYS,),
}


def read_key_files(root: Node, environ: Mapping[str, str]) -> KeyFiles:
    """Read every `key_file` and `api_key_file` of the tree.

    A name without a slash is a systemd credential, looked for in `$CREDENTIALS_DIRECTORY`.
    """
    texts: dict[KeyPath, str] = {}
    findings: list[Finding] = []
    for path, node in tree.walk(root):
        if _names_key_file(path) and isinstance(node.value, str):
            try:
                file = _located(node.value, environ)
                texts[path] = _read_key(file)
            except _KeyFileError as error:
                message = f"expected a file with a key: {error}"
                findings.append(Finding(origin=node.origin, path=path, message=message))
                continue
            if is_exposed(file):
                findings.append(_exposed(node.origin, path, file))
    return KeyFiles(texts=texts, findings=tuple(findings))


def _names_key_file(path: KeyPath) -> bool:
    return len(path) > 1 and path[-1] in _FILE_FIELDS and path[-2] != "tls"


class _KeyFileError(Exception):
    """No key can be had from a file; the text says why."""


def _located(name: str, environ: Mapping[str, str]) -> Path:
    if "/" in name:
        return Path(name)
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        # The name is not shown: it may be a key that was taken for the name of a file.
        msg = "a name without / is a systemd credential, and this program was given none"
        raise _KeyFileError(msg)
    return Path(directory, name)


def _read_key(file: Path) -> str:
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as opened:
            content = opened.read(MAX_KEY_BYTES + 1) or b""
    except OSError as error:
        msg = f"{file} cannot be read: {error.strerror}"
        raise _KeyFileError(msg) from error
    text = content.decode("ascii", errors="replace").strip()
    if len(content) > MAX_KEY_BYTES or not text or not _is_key(text):
        msg = f"{file} does not hold one line of printable ASCII characters without spaces"
        raise _KeyFileError(msg)
    return text


def _is_key(text: str) -> bool:
    return all("!" <= character <= "~" for character in text)


def client_keys(root: Node, section: KeySection, files: KeyFiles) -> tuple[ClientKey, ...]:
    """Return the accepted keys of `section`."""
    return tuple(key for _, key in _uses(root, section, files))


def repeated_keys(root: Node, section: KeySection, files: KeyFiles) -> Iterator[Finding]:
    """Find keys that stand twice in `section`, so that it is not clear whose they are."""
    seen: dict[bytes, KeyPath] = {}
    for path, key in _uses(root, section, files):
        if key.digest in seen:
            node = tree.find(root, path) or root
            message = f"expected a key of its own, found the one of {tree.dotted(seen[key.digest])}"
            yield Finding(origin=node.origin, path=path, message=message)
        seen.setdefault(key.digest, path)


def _uses(root: Node, section: KeySection, files: KeyFiles) -> Iterator[tuple[KeyPath, ClientKey]]:
    for index, node in enumerate(tree.items(tree.find(root, section.listed))):
        if isinstance(node.value, str):
            digest = hashlib.sha256(node.value.encode()).digest()
            # A name that stays when lines move, and that `sha256sum` leads back to the key.
            name = f"{section.prefix}-{digest.hex()[:8]}"
            yield (*section.listed, index), ClientKey(name=name, digest=digest)
    for name, node in tree.entries(tree.find(root, section.named)).items():
        path = (*section.named, name)
        found = _digest(node, path, files)
        if found is not None:
            yield path, _named_key(name, found, node)


def _named_key(name: str, digest: bytes, node: Node) -> ClientKey:
    priority = tree.text_at(node, ("priority",))
    admin = tree.find(node, ("admin",))
    return ClientKey(
        name=name,
        digest=digest,
        roles=_roles(node),
        priority=None if priority is None else Priority[priority.upper()],
        max_concurrent=_count(node, "max_concurrent"),
        requests_per_minute=_count(node, "requests_per_minute"),
        admin=admin is not None and admin.value is True,
    )


def _count(node: Node, key: str) -> int | None:
    found = tree.find(node, (key,))
    return int(found.value) if found is not None and isinstance(found.value, int | float) else None


def _digest(node: Node, path: KeyPath, files: KeyFiles) -> bytes | None:
    hexadecimal = tree.text_at(node, ("key_sha256",))
    if hexadecimal is not None:
        try:
            return bytes.fromhex(hexadecimal)
        except ValueError:
            return None
    key = files.texts.get((*path, "key_file"), tree.text_at(node, ("key",)))
    return None if key is None else hashlib.sha256(key.encode()).digest()


def _roles(node: Node) -> frozenset[Alias] | None:
    roles = tree.find(node, ("roles",))
    if roles is None:
        return None
    return frozenset(Alias(str(role.value)) for role in tree.items(roles))


def exposed_keys(root: Node, files: Iterable[Path]) -> Iterator[Finding]:
    """Warn about each of `files` that holds a key and that every user of this machine can read."""
    exposed = {str(file): file for file in files if is_exposed(file)}
    for path, node in tree.walk(root):
        file = exposed.get(node.origin.source)
        if file is not None and isinstance(node.value, str) and _is_inline_key(path):
            del exposed[node.origin.source]
            yield _exposed(node.origin, path, file)


def _is_inline_key(path: KeyPath) -> bool:
    if not path or path[0] not in ("auth", "gateways", "models"):
        return False
    return path[-1] in _KEY_FIELDS or (len(path) > 1 and path[-2] in _KEY_LISTS)


def _exposed(origin: Origin, path: KeyPath, file: Path) -> Finding:
    message = f"every user of this machine can read this key; run: chmod o-r {file}"
    return Finding(origin=origin, path=path, message=message, is_warning=True)


def is_exposed(file: Path) -> bool:
    """Tell whether anyone may read `file` and pass the directories above it."""
    try:
        resolved = file.resolve()
        if not resolved.stat().st_mode & stat.S_IROTH:
            return False
        return all(parent.stat().st_mode & stat.S_IXOTH for parent in resolved.parents)
    except OSError:
        return False
