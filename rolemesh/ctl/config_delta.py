"""`rolemeshctl config delta`: what the files of this host change of what packages brought.

Like systemd-delta: files that replace or switch off others, then what each file adds, changes or
deletes, key by key. Files below /usr/lib are the packages'.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rolemesh.config import tree
from rolemesh.config.dropins import ConfigSource, read_fragments
from rolemesh.config.merge import SHAPES, merge
from rolemesh.config.tree import KeyPath, Node
from rolemesh.ctl import output
from rolemesh.ctl.config_show import shown_value
from rolemesh.ctl.outcomes import EXIT_CONFIG, EXIT_OK

VENDOR: Final = Path("/usr/lib")

_COLOURS: Final[Mapping[str, output.Colour]] = {
    "added": "green",
    "changed": "yellow",
    "deleted": "red",
}

_Leaves = Mapping[KeyPath, Node]


def run(source: ConfigSource, *, as_json: bool, vendor: Path = VENDOR) -> int:
    """Print the differences; `vendor` is where packages put files."""
    reading = read_fragments(source)
    problems = [found.problem() for found in reading.findings if not found.is_warning]
    files = list(_shadowed(source, reading.files))
    changes = [
        change
        for change in _changes(source, reading.fragments)
        if not Path(change["file"]).is_relative_to(vendor)
    ]
    if as_json:
        output.put_json({"files": files, "values": changes})
    else:
        _put(files, changes)
    for problem in problems:
        output.note(str(problem))
    return EXIT_CONFIG if problems else EXIT_OK


def _shadowed(source: ConfigSource, read: tuple[Path, ...]) -> Iterator[dict[str, Any]]:
    """Yield each file that a file of its name in a higher directory keeps from being read."""
    by_name: dict[str, list[Path]] = {}
    for directory in source.directories:
        for path in sorted(directory.glob("[!.]*.yaml")) if directory.is_dir() else ():
            by_name.setdefault(path.name, []).append(path)
    for name in sorted(by_name):
        *lower, highest = by_name[name]
        how = "replaced" if highest in read else "masked"
        for path in lower:
            yield {"file": str(path), "how": how, "by": str(highest)}


def _changes(source: ConfigSource, fragments: tuple[Node, ...]) -> Iterator[dict[str, Any]]:
    """Yield what each fragment changes of what the ones before it said."""
    shape = SHAPES[source.program]
    before: _Leaves = {}
    for count in range(1, len(fragments) + 1):
        after = _leaves(merge(fragments[:count], shape).root)
        origin = fragments[count - 1].origin
        for path in (*after, *(path for path in before if path not in after)):
            old, new = before.get(path), after.get(path)
            if _is_hull(path, old, after) or _is_hull(path, new, before):
                continue
            if old is None or new is None or old.origin != new.origin:
                yield _change(path, old, new, origin.source)
        before = after


def _leaves(root: Node) -> _Leaves:
    """Return every value that is not made of others."""
    return {path: node for path, node in tree.walk(root) if path and not _has_parts(node)}


def _has_parts(node: Node) -> bool:
    return bool(tree.entries(node) or tree.items(node))


def _is_hull(path: KeyPath, node: Node | None, others: _Leaves) -> bool:
    """Tell whether `node` is empty while `others` have what is in it: that is told by itself."""
    if node is None or not isinstance(node.value, Mapping | tuple):
        return False
    return any(len(other) > len(path) and other[: len(path)] == path for other in others)


def _change(path: KeyPath, old: Node | None, new: Node | None, file: str) -> dict[str, Any]:
    how = "added" if old is None else "deleted" if new is None else "changed"
    return {
        "file": file,
        "how": how,
        "key": tree.dotted(path),
        "value": None if new is None else shown_value(new, path),
        "where": file if new is None else str(new.origin),
        "was": None if old is None else shown_value(old, path),
        "was_where": None if old is None else str(old.origin),
    }


def _put(files: list[dict[str, Any]], changes: list[dict[str, Any]]) -> None:
    if not files and not changes:
        output.note("nothing is changed of what packages brought")
    for each in files:
        by = "switched off" if each["how"] == "masked" else "replaced"
        output.put(output.clean(f"[{each['how']}] {each['file']} is {by} by {each['by']}"))
    file = ""
    for change in changes:
        if change["file"] != file:
            file = change["file"]
            output.put(output.coloured(f"# {output.clean(file)}", "bold"))
        mark = output.coloured(f"{change['how']:8}", _COLOURS[change["how"]])
        output.put(f"  {mark} {output.clean(_text(change))}")


def _text(change: Mapping[str, Any]) -> str:
    if change["how"] == "added":
        return f"{change['key']}: {change['value']}"
    old = f"{change['was']} ({change['was_where']})"
    if change["how"] == "deleted":
        return f"{change['key']}: was {old}"
    return f"{change['key']}: {change['value']}, was {old}"
