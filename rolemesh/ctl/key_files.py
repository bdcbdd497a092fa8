"""A key as a drop-in of its own: what is in the file, whose file it is, and how it is written.

A file holds the digest of one key, never the key. It is ours as long as it holds exactly what
would be written for what it says; one that somebody edited, or made, is left alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from rolemesh.config import tree
from rolemesh.config.yamlread import YamlError, read_yaml
from rolemesh.ctl import own_files
from rolemesh.ctl.outcomes import Failed

Kind = Literal["client", "node"]

GROUP: Final = "_rolemesh-gateway"

_SECTIONS: Final[dict[Kind, str]] = {"client": "clients", "node": "nodes"}
_PREFIXES: Final[dict[Kind, str]] = {"client": "key-", "node": "node-key-"}
_LIMITS: Final = ("roles", "priority", "max_concurrent", "requests_per_minute", "admin")
_HEAD: Final = "# Written by rolemeshctl, which changes and removes this file: do not edit it.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry:
    """One named key: who has it, its SHA-256, and what it may; see config.settings.ClientKey."""

    kind: Kind
    name: str
    key_sha256: str
    roles: tuple[str, ...] | None = None
    priority: str | None = None
    max_concurrent: int | None = None
    requests_per_minute: int | None = None
    admin: bool = False

    @property
    def path(self) -> tuple[str, ...]:
        """Where it stands in the configuration."""
        return ("auth", _SECTIONS[self.kind], self.name)

    @property
    def file_name(self) -> str:
        """The name of its file."""
        return f"{_PREFIXES[self.kind]}{self.name}.yaml"

    def limits(self) -> dict[str, Any]:
        """Return what it may, without what is left open."""
        said = {name: getattr(self, name) for name in _LIMITS}
        return {name: value for name, value in said.items() if value not in (None, False)}


def render(entry: KeyEntry) -> str:
    """Return the text of an entry's file."""
    # Strings as JSON, which YAML reads alike: a name may look like a number.
    values = {"key_sha256": entry.key_sha256, **entry.limits()}
    lines = [f"      {name}: {json.dumps(value)}\n" for name, value in values.items()]
    section = f"auth:\n  {_SECTIONS[entry.kind]}:\n    {json.dumps(entry.name)}:\n"
    return _HEAD + section + "".join(lines)


def parse(text: str, kind: Kind, name: str) -> KeyEntry | None:
    """Return the entry in a file of ours, None for any other file."""
    try:
        root = read_yaml(text, "")
    except YamlError:
        return None
    if root is None:
        return None
    found = tree.find(root, ("auth", _SECTIONS[kind], name))
    said = {key: tree.plain(node) for key, node in tree.entries(found).items()}
    if not said.keys() <= {"key_sha256", *_LIMITS} or "key_sha256" not in said:
        return None
    if isinstance(said.get("roles"), list):
        said["roles"] = tuple(said["roles"])
    entry = KeyEntry(kind=kind, name=name, **said)
    return entry if render(entry) == text else None


def read_own(file: Path, kind: Kind, name: str) -> KeyEntry:
    """Return the entry in `file`; raises Failed when the file is not ours."""
    try:
        entry = parse(file.read_text(encoding="utf-8"), kind, name)
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{file} cannot be read: {getattr(error, 'strerror', '') or 'not text'}"
        raise Failed(msg) from error
    if entry is None:
        msg = f"{file} was not written by rolemeshctl, or was edited: change it by hand"
        raise Failed(msg)
    return entry


def write(file: Path, text: str, *, is_new: bool) -> None:
    """Put `text` in place at once and for good; an existing file is never replaced as a new one."""
    own_files.write(file, text, group=GROUP, is_new=is_new)


def make_directory(directory: Path) -> None:
    """Make a drop-in directory that only root and the gateway can read, unless it is there."""
    own_files.make_directory(directory, group=GROUP)
