"""`rolemeshctl config cat`: each file that is read, in that order, without the keys in it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from rolemesh.config.dropins import ConfigSource, read_fragments
from rolemesh.config.tree import KeyPath, holds_key
from rolemesh.ctl import output
from rolemesh.ctl.outcomes import EXIT_CONFIG, EXIT_OK

HIDDEN: Final = '"(hidden)"'

_SECRET_NAMES: Final = frozenset({"key", "key_sha256", "api_key"})
_USER_PART: Final = re.compile(r"(?<=://)[^/@\s]*@")
_KEY_IN_COMMENT: Final = re.compile(
    r"(#.*?\b(?:key|key_sha256|\w*api_keys?)\s*:)\s*\S.*$", re.MULTILINE
)


def run(source: ConfigSource, *, as_json: bool) -> int:
    """Print the files."""
    reading = read_fragments(source)
    readable = {fragment.origin.source for fragment in reading.fragments}
    shown = {
        path: hide_keys(path.read_text("utf-8-sig")) if str(path) in readable else None
        for path in reading.files
    }
    problems = [found.problem() for found in reading.findings if not found.is_warning]
    if as_json:
        files = [{"path": str(path), "text": text} for path, text in shown.items()]
        output.put_json({"files": files})
    else:
        _put_files(shown)
    for problem in problems:
        output.note(str(problem))
    return EXIT_CONFIG if problems else EXIT_OK


def _put_files(shown: dict[Path, str | None]) -> None:
    if not shown:
        output.note("no file is read: everything is at its default")
    for index, (path, text) in enumerate(shown.items()):
        if index:
            output.put()
        output.put(output.coloured(f"# {output.clean(str(path))}", "bold"))
        # What cannot be understood may hold a key anywhere.
        lines = ["# (not shown: it is not valid)"] if text is None else text.splitlines()
        for line in lines:
            output.put(output.clean(line.replace("\t", "    ")))


def hide_keys(text: str) -> str:
    """Return the text of a valid fragment with all keys and digests hidden, everything else kept."""
    # The pure Python loader: its marks count characters.
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    spans = {} if root is None else dict(_secret_spans(root, ()))
    for start, end in sorted(spans.items(), reverse=True):
        text = text[:start] + HIDDEN + text[end:]
    text = _KEY_IN_COMMENT.sub(rf"\1 {HIDDEN}", text)
    return _USER_PART.sub("...@", text)


def _secret_spans(node: Any, path: KeyPath) -> Iterator[tuple[int, int]]:
    """Yield where the secret scalars begin and end."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _secret_spans(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _secret_spans(item, (*path, index))
    elif is_secret(path, node.value):
        yield node.start_mark.index, _end(node)


def _end(node: Any) -> int:
    # A block scalar's end is at the beginning of what follows it.
    end: int = node.end_mark.index
    return end - 1 if node.style in ("|", ">") and node.end_mark.column == 0 else end


def is_secret(path: KeyPath, value: Any) -> bool:
    """Tell whether `value`, which stands at `path`, is a key or a digest, or may be one."""
    name = path[-1] if path else ""
    if isinstance(name, str) and name.endswith("_file") and str(value).startswith("/"):
        return False
    return value is not None and (holds_key(path) or name in _SECRET_NAMES)
