"""`rolemeshctl node join`: this host reports to a gateway, from the check of the key to the listing."""

import argparse
import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rolemesh.config.load import Loaded, load_node
from rolemesh.config.settings import NodeSettings
from rolemesh.ctl import join_file, output, own_files
from rolemesh.ctl.agent_place import GROUP, KEY_GROUP, AgentPlace, agent_place
from rolemesh.ctl.changes import guarded, loaded_with, put_file, require_writable
from rolemesh.ctl.config import daemon_environment
from rolemesh.ctl.gateway_address import text_of_key
from rolemesh.ctl.join_file import Join
from rolemesh.ctl.join_gateway import JoinGateway
from rolemesh.ctl.join_plan import (
    checked_gateway,
    plan_join,
    require_free_port,
    require_in_force,
)
from rolemesh.ctl.outcomes import EXIT_OK, BadUsage, Failed
from rolemesh.errors import ConfigError

_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,4096}")
_PAUSE_S: Final = 0.5
_AT_START: Final = ("node_id", "listen", "advertise_url")
"""What an agent takes up only when it starts."""


def run(args: argparse.Namespace) -> int:
    """Join, and wait until the gateway lists the node."""
    args.gateway = checked_gateway(args.gateway)
    token = _token(args)
    place = agent_place(args.agent, args.directory)
    file = place.directory / join_file.NAME
    with _directory(place) as keep:
        old = join_file.require_replaceable(file, args.gateway, force=args.force)
        old_key = join_file.require_own_key(place.key_file, old, force=args.force)
        before = _before(place)
        base = loaded_with(place.source, file, None, load_node)
        gateway = JoinGateway(args.gateway, token, args.ca_file)
        join = plan_join(args, place, gateway.address, base)
        node_id = join.node_id or str(base.settings.node_id)
        with output.Progress() as progress:
            progress.say(f"asking {args.gateway}")
            gateway.require_gateway()
            _require_own_name(gateway, node_id, join, is_known=_has_joined(before, args.gateway))
        is_running = place.is_running()
        settings = _judged(place, file, join, token)
        if place.unit and not (is_running and before and before.listen == settings.listen):
            require_free_port(settings, before.listen if is_running and before else None)
        restarts = any(getattr(before, key, None) != getattr(settings, key) for key in _AT_START)
        _put_in_force(place, file, join, token, (old, old_key), restarts=restarts)
        keep.pop_all()
    told = {
        "node_id": node_id,
        "gateway": args.gateway,
        "advertise_url": join.advertise_url,
        "file": str(file),
        "key_file": str(join.key_file),
    }
    if place.unit and not is_running:
        return _not_running(args, place, told)
    if not args.json:
        output.note(f"{file}: {_in_force(place)}")
    _wait(args, place, gateway, told)
    _put_joined(args, told, has_models=bool(settings.models))
    return EXIT_OK


def _token(args: argparse.Namespace) -> str:
    try:
        token: str = args.token if args.token_file is None else text_of_key(args.token_file)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", "") or "not text"
        msg = f"the token file {args.token_file} cannot be read: {why}"
        raise BadUsage(msg) from error
    if not _TOKEN.fullmatch(token):
        msg = "the token is not one line of printable ASCII characters without spaces"
        raise BadUsage(msg)
    return token


@contextlib.contextmanager
def _directory(place: AgentPlace) -> Iterator[contextlib.ExitStack]:
    """Make the agent's directory if need be; it goes again unless the stack is emptied."""
    with contextlib.ExitStack() as undo:
        if place.name and place.directory.parent.is_dir() and not place.directory.exists():
            guarded(place.directory, lambda: own_files.make_directory(place.directory, group=GROUP))
            undo.callback(place.directory.rmdir)
        require_writable(place.directory, "node")
        require_writable(place.key_file.parent, "node")
        yield undo


def _before(place: AgentPlace) -> NodeSettings | None:
    """Return what is in force, None where that is refused: what is written may mend it."""
    try:
        return load_node(place.source, daemon_environment(place.source)).settings
    except ConfigError:
        return None


def _has_joined(settings: NodeSettings | None, url: str) -> bool:
    return settings is not None and any(link.url == url for link in settings.gateways)


def _require_own_name(gateway: JoinGateway, node_id: str, join: Join, *, is_known: bool) -> None:
    """Raise a CtlError when the key is not taken, or another host has this node's name."""
    known = gateway.node(node_id)
    if known is None or is_known or known.get("state") != "live":
        return
    if known.get("base_url") != join.advertise_url:
        msg = (
            f"a node {node_id} at {known.get('base_url')} reports to {gateway.url} already: give "
            "this one another name with --name"
        )
        raise Failed(msg)


# -- the files ---------------------------------------------------------------------------------


def _judged(place: AgentPlace, file: Path, join: Join, token: str) -> NodeSettings:
    """Return what would be in force; raises a CtlError when that cannot be."""
    with contextlib.ExitStack() as stack:
        # The key is not in its place yet.
        beside = own_files.written_beside(join.key_file, f"{token}\n", group=KEY_GROUP)
        key = guarded(join.key_file, lambda: stack.enter_context(beside))
        text = join_file.render(dataclasses.replace(join, key_file=key))
        found: Loaded[NodeSettings] = loaded_with(place.source, file, text, load_node)
    require_in_force(join, found.settings)
    return found.settings


def _put_in_force(
    place: AgentPlace,
    file: Path,
    join: Join,
    token: str,
    before: tuple[str | None, str | None],
    *,
    restarts: bool,
) -> None:
    """Write key and drop-in, and have a running agent take them up; raises Failed, all undone.

    `before` is what was in the drop-in and in the key's file.
    """
    key = join.key_file
    old, old_key = before
    with contextlib.ExitStack() as undo:
        undo.callback(_restore, key, old_key)
        guarded(key, lambda: own_files.write(key, f"{token}\n", group=KEY_GROUP, is_new=False))
        put_file(place, file, join_file.render(join), old=old, restarts=restarts)
        undo.pop_all()


def _restore(key: Path, text: str | None) -> None:
    if text is not None:
        own_files.write(key, text, group=KEY_GROUP, is_new=False)
    elif key.exists():
        own_files.remove(key)


# -- what comes of it --------------------------------------------------------------------------


def _in_force(place: AgentPlace) -> str:
    return "in force" if place.unit else "in force once the agent that reads it reloads (SIGHUP)"


def _not_running(args: argparse.Namespace, place: AgentPlace, told: dict[str, Any]) -> int:
    command = f"systemctl enable --now {place.unit}"
    if args.json:
        output.put_json({**told, "registered": False, "start": command})
        return EXIT_OK
    output.put(f"{told['node_id']} is ready to join {told['gateway']}: {told['file']}")
    output.put(f"Its agent does not run; start it: sudo {command}")
    return EXIT_OK


def _wait(
    args: argparse.Namespace, place: AgentPlace, gateway: JoinGateway, told: dict[str, Any]
) -> None:
    """Return once the gateway lists the node in its new place; raises Failed."""
    end = time.monotonic() + args.wait
    with output.Progress() as progress:
        while True:
            known = gateway.node(told["node_id"]) or {}
            reason = str(known.get("reason", ""))
            if known.get("base_url") == told["advertise_url"] and not reason:
                return
            left = end - time.monotonic()
            said = place.status() if place.unit else ""
            refused = f"{args.gateway} refused:" in said
            if left <= 0 or refused:
                break
            progress.say(f"waiting for {args.gateway} to list {told['node_id']} ({left:.0f} s)")
            time.sleep(min(_PAUSE_S, left))
    more = reason or said or "the agent says nothing"
    msg = (
        f"{args.gateway} {'refuses' if refused else 'does not list'} {told['node_id']} ({more}); "
        f"what was written stays: {told['file']}"
    )
    raise Failed(msg)


def _put_joined(args: argparse.Namespace, told: dict[str, Any], *, has_models: bool) -> None:
    if args.json:
        output.put_json({**told, "registered": True})
        return
    output.put(
        f"{told['node_id']} has joined {told['gateway']}, which reaches it at "
        f"{told['advertise_url']}"
    )
    if not has_models:
        agent = f" --agent {args.agent}" if args.agent else ""
        output.note(f"Next, a model: sudo rolemeshctl model add FILE --role ROLE{agent}")
