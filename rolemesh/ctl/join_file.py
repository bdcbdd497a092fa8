"""What `rolemeshctl node join` writes: one drop-in for each agent, and the key in a file beside it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rolemesh.config import tree
from rolemesh.config.yamlread import YamlError, read_yaml
from rolemesh.ctl.outcomes import Failed

NAME: Final = "50-join.yaml"

_HEAD: Final = "# Written by `rolemeshctl node join`, which replaces this file.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """What is written; `node_id`, `hosts` and `port` are None where others say it already."""

    gateway: str
    key_file: Path
    advertise_url: str
    ca_file: Path | None = None
    node_id: str | None = None
    hosts: tuple[str, ...] | None = None
    port: int | None = None


def render(join: Join) -> str:
    """Return the text of the drop-in."""
    # Strings as JSON, which YAML reads alike: a name may look like a number.
    return _HEAD + "".join(f"{line}\n" for line in _lines(join))


def _lines(join: Join) -> Iterator[str]:
    if join.node_id is not None:
        yield f"node_id: {json.dumps(join.node_id)}"
    if join.hosts is not None or join.port is not None:
        yield "listen:"
    if join.hosts is not None:
        yield f"  host: {json.dumps(list(join.hosts))}"
    if join.port is not None:
        yield f"  port: {join.port}"
    yield f"advertise_url: {json.dumps(join.advertise_url)}"
    yield "gateways:"
    yield f"  {json.dumps(join.gateway)}:"
    yield f"    api_key_file: {json.dumps(str(join.key_file))}"
    if join.ca_file is not None:
        yield f"    tls: {{ca_file: {json.dumps(str(join.ca_file))}}}"


def require_replaceable(file: Path, gateway: str, *, force: bool) -> str | None:
    """Return what is in `file`, None when it is not there.

    Raises Failed when somebody else wrote it, or it is of another gateway, unless `force`.
    """
    text = _read(file)
    if text is None or force:
        return text
    join = _parse(text)
    if join is None:
        msg = (
            f"{file} was not written by `node join`, or was edited: rename it, or replace it with "
            "--force"
        )
        raise Failed(msg)
    if join.gateway != gateway:
        msg = (
            f"this host has joined {join.gateway} ({file}): replace that with --force, or rename the "
            "file to report to both"
        )
        raise Failed(msg)
    return text


def require_own_key(key: Path, drop_in: str | None, *, force: bool) -> str | None:
    """Return what is in the key's file, None when it is not there.

    Raises Failed when the `drop_in` of an earlier join does not name it, unless `force`.
    """
    text = _read(key)
    if text is None or force:
        return text
    join = _parse(drop_in or "")
    if join is None or join.key_file != key:
        msg = (
            f"{key} is there already and is not of a join that {NAME} tells of: rename it, or "
            "replace it with --force"
        )
        raise Failed(msg)
    return text


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{file} cannot be read: {getattr(error, 'strerror', '') or 'not text'}"
        raise Failed(msg) from error


def _parse(text: str) -> Join | None:
    """Return what stands in a file of ours, None for any other file."""
    try:
        root = read_yaml(text, "")
        join = None if root is None else _join(tree.plain(root))
    except (YamlError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return join if join is not None and render(join) == text else None


def _join(said: Any) -> Join:
    """Read what we wrote; raises one of the errors above for what cannot be ours."""
    ((gateway, link),) = said["gateways"].items()
    listen = said.get("listen", {})
    ca_file = link.get("tls", {}).get("ca_file")
    return Join(
        gateway=gateway,
        key_file=Path(link["api_key_file"]),
        advertise_url=said["advertise_url"],
        ca_file=ca_file and Path(ca_file),
        node_id=said.get("node_id"),
        hosts=tuple(listen["host"]) if "host" in listen else None,
        port=listen.get("port"),
    )
