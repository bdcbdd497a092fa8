"""A model as a drop-in of its own: what `rolemeshctl model add` writes, and whose file it is.

It is ours as long as it holds exactly what would be written for what it says; one that somebody
edited, or made, is left alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rolemesh.config import tree
from rolemesh.config.tree import Node
from rolemesh.config.yamlread import YamlError, read_yaml

_HEAD: Final = "# Written by `rolemeshctl model add`; `rolemeshctl model remove` takes it away: do not edit it.\n"
_PREFIX: Final = "60-"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One model: its file, its roles, and where it is kept.

    `pin` is the instance where it stays; `beside` are the instances that the agent would have
    without that, and that it must not lose by it.
    """

    model_id: str
    path: Path
    roles: tuple[str, ...]
    context_size: int | None = None
    parallel: int | None = None
    embeddings: bool = False
    rerank: bool = False
    pin: str | None = None
    beside: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """The name of its file."""
        return f"{_PREFIX}{self.model_id}.yaml"


def render(entry: ModelEntry) -> str:
    """Return the text of an entry's file."""
    # Strings as JSON, which YAML reads alike: a name may look like a number.
    model_id = json.dumps(entry.model_id)
    values: dict[str, Any] = {"path": str(entry.path), "roles": list(entry.roles)}
    for name in ("context_size", "parallel"):
        value = getattr(entry, name)
        if value is not None:
            values[name] = value
    values |= {name: True for name in ("embeddings", "rerank") if getattr(entry, name)}
    text = f"{_HEAD}models:\n  {model_id}:\n"
    # As they are, not as \\u escapes: JSON writes one character as two of those, YAML reads two.
    shown = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    text += "".join(f"    {name}: {value}\n" for name, value in shown.items())
    if entry.pin is not None:
        text += f"instances:\n  {entry.pin}: {{model: {model_id}, pinned: true}}\n"
        text += "".join(f"  {name}: {{}}\n" for name in entry.beside)
    return text


def parse(text: str) -> ModelEntry | None:
    """Return the entry in a file of ours, None for any other file."""
    try:
        root = read_yaml(text, "")
        entry = None if root is None else _entry(root)
    except (YamlError, TypeError, ValueError):
        return None
    return entry if entry is not None and render(entry) == text else None


def _entry(root: Node) -> ModelEntry:
    """Read an entry; raises TypeError or ValueError for what cannot be one of ours."""
    ((model_id, model),) = tree.entries(tree.find(root, ("models",))).items()
    said = {name: tree.plain(node) for name, node in tree.entries(model).items()}
    instances = tree.entries(tree.find(root, ("instances",)))
    pins = [name for name, node in instances.items() if tree.entries(node)]
    return ModelEntry(
        model_id=model_id,
        path=Path(said.pop("path", "")),
        roles=tuple(said.pop("roles", ())),
        pin=pins[0] if pins else None,
        beside=tuple(name for name in instances if name not in pins),
        **said,
    )
