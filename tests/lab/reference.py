"""Writes the tables of docs/ that follow from schemas: `python -m tests.lab.reference` (make docs).

A table stands in a page between a comment that says what it is of, and one that ends it:

    <!-- keys of gateway: /properties/listen -->
    <!-- end -->

`keys of PROGRAM: POINTER` are the keys of a mapping in a configuration (a JSON pointer into
`rolemesh/config/schemas`), `paths of TAG` the paths of the OpenAPI document with that tag, `errors`
the errors that it describes. Everything outside of such comments is written by hand.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = tuple(ROOT / "docs" / name for name in ("configuration.md", "api.md"))

_TABLE = re.compile(r"(<!-- ([a-z]+)(?: of ([^>]*?))? -->\n).*?(<!-- end -->)", re.DOTALL)

Tree = Mapping[str, Any]


def main() -> None:
    """Write every table anew."""
    for page in PAGES:
        page.write_text(filled(page.read_text()))


def filled(text: str) -> str:
    """Return the text of a page with its tables as they have to be."""

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}\n{_KINDS[match[2]](match[3])}\n\n{match[4]}"

    return _TABLE.sub(fill, text)


def table(*rows: Iterable[str]) -> str:
    """Return a table whose first row is its head."""
    first, *others = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join((first, "|" + "---|" * (first.count(" | ") + 1), *others))


# --- configuration ----------------------------------------------------------------------------


def keys_table(what: str) -> str:
    """Return the keys of a mapping; `what` is as in `gateway: /properties/listen`."""
    program, _, pointer = what.partition(": ")
    schema = json.loads((ROOT / f"rolemesh/config/schemas/{program}.json").read_text())
    mapping = _found(schema, schema, [step for step in pointer.split("/") if step])
    required = mapping.get("required", ())
    rows = [("key", "meaning", "value", "default")]
    for key, stated in mapping["properties"].items():
        if stated is True:  # checked elsewhere in the schema
            continue
        entry = _resolved(schema, stated)
        value = entry["x-expected"].replace("|", "\\|")
        default = "required" if key in required else _default(entry)
        rows.append((f"`{key}`", entry["description"].removesuffix("."), value, default))
    return table(*rows)


def _default(entry: Tree) -> str:
    if "default" not in entry:
        return ""
    value = entry["default"]
    if value == []:
        return "none"
    shown = f"`{value if isinstance(value, str) else json.dumps(value)}`"
    if "bytes" in entry["x-expected"] and value % 1024 == 0:
        size = value // 1024
        return f"{shown} ({size // 1024} MiB)" if size >= 1024 else f"{shown} ({size} KiB)"
    return shown


def _found(schema: Tree, node: Tree, steps: list[str]) -> Tree:
    for step in steps:
        node = _resolved(schema, node)[step]
    return _resolved(schema, node)


def _resolved(schema: Tree, node: Tree) -> Tree:
    """Return a node with what it refers to; what it says itself comes first, lists are joined."""
    if "$ref" not in node:
        return node
    target = _found(schema, schema, node["$ref"].removeprefix("#/").split("/"))
    own = {key: value for key, value in node.items() if key != "$ref"}
    required = [*own.get("required", ()), *target.get("required", ())]
    return {**target, **own, **({"required": required} if required else {})}


# --- the API ----------------------------------------------------------------------------------


def _document() -> Any:
    return json.loads((ROOT / "rolemesh/gateway/openapi.json").read_text())


def _item(document: Tree, node: Tree) -> Tree:
    return _found(document, node, []) if "$ref" in node else node


def paths_table(tag: str) -> str:
    """Return the paths with a tag; several spellings of one path stand together."""
    document, spellings = _document(), dict[str, list[str]]()
    shown: dict[str, tuple[str, str]] = {}
    for path, node in document["paths"].items():
        for method, operation in _item(document, node).items():
            if tag not in operation["tags"]:
                continue
            name = json.dumps(operation) if "$ref" in node else f"{method} {path}"
            spellings.setdefault(name, []).append(f"`{method.upper()} {path}`")
            shown[name] = (operation["summary"].removesuffix("."), _statuses(operation))
    rows = [(", ".join(spellings[name]), *shown[name]) for name in spellings]
    return table(("path", "what it does", "answers with"), *rows)


def _statuses(operation: Tree) -> str:
    everywhere = {"400", "408", "413", "431", "4XX"}
    return ", ".join(sorted(operation["responses"].keys() - everywhere))


def errors_table(_: str) -> str:
    """Return what each error status means."""
    document = _document()
    said: dict[str, str] = {}
    for node in document["paths"].values():
        for operation in _item(document, node).values():
            for status, response in operation["responses"].items():
                text = _item(document, response)["description"].partition(" Or the upstream")[0]
                if status[0] in "45" and "`" in text:
                    said.setdefault(status, text)
    said["405"] = document["components"]["responses"]["MethodNotAllowed"]["description"]
    rows = [(status, said[status].removesuffix(".")) for status in sorted(said)]
    return table(("status", "when (`code`)"), *rows)


_KINDS: Mapping[str, Callable[[str], str]] = {
    "keys": keys_table,
    "paths": paths_table,
    "errors": errors_table,
}


if __name__ == "__main__":
    main()
