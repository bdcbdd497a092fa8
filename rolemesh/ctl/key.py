"""`rolemeshctl key`: the keys of clients and nodes, one drop-in each.

A change is checked with the rest of the configuration before it is written, and taken back when
the gateway refuses it.
"""

import argparse
import dataclasses
import hashlib
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rolemesh.config import tree
from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import load_gateway
from rolemesh.ctl import key_files, key_list, output, own_files
from rolemesh.ctl.changes import guarded, loaded_with, merged, require_writable
from rolemesh.ctl.gateway_address import (
    GatewayAddress,
    add_gateway_options,
    control_sockets,
    find_gateway,
)
from rolemesh.ctl.gateway_api import ApiError, GatewayApi
from rolemesh.ctl.key_files import KeyEntry, Kind
from rolemesh.ctl.outcomes import (
    EXIT_OK,
    BadConfig,
    BadUsage,
    CtlError,
    Failed,
    NotReachable,
    NotThere,
)
from rolemesh.ctl.reload import put_problems

DESCRIPTION: Final = (
    "Add, list, limit and revoke keys. Each key is a file of its own that holds only its SHA-256,\n"
    "checked with the rest of the configuration before it is written; then the gateway reloads."
)
EXAMPLES: Final = (
    "sudo rolemeshctl key add ci --roles coder,critic --priority batch --max-concurrent 4",
    "sudo rolemeshctl key add gpubox --node          # with which a node registers",
    "sudo rolemeshctl key add guest --runtime        # until the next boot",
    "sudo rolemeshctl key limit ci --max-concurrent 8 --priority none",
    "sudo rolemeshctl key revoke ci                  # its running requests end, too",
    "rolemeshctl key list",
)

PERSISTENT: Final = Path("/etc/rolemesh/gateway.d")
RUNTIME: Final = Path("/run/rolemesh/gateway.d")
KEY_BYTES: Final = 32

Undo = Callable[[], None]
"""Takes back what was written."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LIFTED: Final = "none"
_LIMITS: Final = ("roles", "priority", "max_concurrent", "requests_per_minute", "admin")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    verbs = parser.add_subparsers(dest="what", metavar="add | list | limit | revoke", required=True)
    add = _add(verbs, "add", "make a key, and print it: once, on stdout")
    add.add_argument("name", metavar="NAME", help="whose it is; stands in the log and in `ps`")
    _add_limits(add)
    add.add_argument(
        "--print-only", action="store_true", help="print key and file, and write nothing"
    )
    _add(verbs, "list", "list keys and what they may, never digests")
    limit = _add(verbs, "limit", f"change what a key may; {_LIFTED} lifts a limit")
    limit.add_argument("name", metavar="NAME")
    _add_limits(limit)
    revoke = _add(verbs, "revoke", "take a key away; its running requests are cancelled")
    revoke.add_argument("name", metavar="NAME")


def _add(verbs: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary)
    parser.add_argument("--node", action="store_true", help="a key with which a node registers")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--runtime", action="store_true", help=f"in {RUNTIME}: until the next boot")
    where.add_argument(
        "--directory",
        metavar="DIR",
        type=Path,
        help="in DIR, for a gateway with --config-dir DIR; with --url, that gateway reloads",
    )
    add_gateway_options(parser)
    return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--roles", metavar="A,B", help="the aliases it may use (default: any)")
    parser.add_argument(
        "--priority",
        choices=["interactive", "default", "batch", _LIFTED],
        help="the highest its requests may have",
    )
    parser.add_argument(
        "--max-concurrent", metavar="N", type=_count, help="requests that run at once; more wait"
    )
    parser.add_argument(
        "--requests-per-minute", metavar="N", type=_count, help="more are refused with 429"
    )
    parser.add_argument(
        "--admin",
        action=argparse.BooleanOptionalAction,
        help="whether it may use what rolemeshctl uses",
    )


def _count(text: str) -> int | str:
    if text == _LIFTED:
        return text
    if not text.isdecimal() or int(text) < 1:
        msg = f"expected a whole number from 1, or {_LIFTED}, found {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb's verb."""
    source = ConfigSource(
        program="gateway", config_dir=args.directory and args.directory.absolute()
    )
    if args.what == "list":
        return key_list.run(args, source)
    if not _NAME.fullmatch(args.name):
        msg = f"{args.name!r} is not a name of at most 64 letters, digits and ._-"
        raise BadUsage(msg)
    if args.what != "revoke" and args.node and _limits(args):
        msg = "a node's key has no limits: leave --roles, --priority and the like out"
        raise BadUsage(msg)
    return {"add": _add_key, "limit": _limit_key, "revoke": _revoke_key}[args.what](args, source)


def _kind(args: argparse.Namespace) -> Kind:
    return "node" if args.node else "client"


def _directory(args: argparse.Namespace) -> Path:
    if args.directory is not None:
        return Path(args.directory).absolute()
    return RUNTIME if args.runtime else PERSISTENT


def _limits(args: argparse.Namespace) -> dict[str, Any]:
    """Return the limits that the options name; None lifts one."""
    given = {name: getattr(args, name) for name in _LIMITS}
    said = {name: value for name, value in given.items() if value is not None}
    if "roles" in said:
        said["roles"] = tuple(filter(None, said["roles"].split(",")))
        if said["roles"] in ((), (_LIFTED,)):
            said["roles"] = None
    return {name: None if value == _LIFTED else value for name, value in said.items()}


# -- the three changes -------------------------------------------------------------------------


def _add_key(args: argparse.Namespace, source: ConfigSource) -> int:
    key, digest = new_key()
    entry = KeyEntry(kind=_kind(args), name=args.name, key_sha256=digest, **_limits(args))
    file = _directory(args) / entry.file_name
    if args.print_only:
        _put_added(args, key, entry, file)
        return EXIT_OK
    if args.runtime:
        guarded(file, lambda: key_files.make_directory(file.parent))
    in_force = put_in_force(source, entry, file, _gateway(args))
    _put_added(args, key, entry, file)
    output.note(f"{args.name}: {file}; {in_force}")
    return EXIT_OK


def new_key() -> tuple[str, str]:
    """Return a key that nobody else has, and its digest in hexadecimal."""
    key = f"rm-{secrets.token_urlsafe(KEY_BYTES)}"
    return key, hashlib.sha256(key.encode()).hexdigest()


def put_in_force(
    source: ConfigSource, entry: KeyEntry, file: Path, gateway: GatewayAddress | None
) -> str:
    """Write a new key's file and have the gateway reload; returns what is to be said of it.

    Names the nodes that it shuts out. Raises a CtlError when nothing was changed.
    """
    require_writable(file.parent, "gateway")
    taken = tree.find(merged(source), entry.path)
    if taken is not None:
        msg = f"there is a key {entry.name!r} already, at {taken.origin}: choose another name"
        raise Failed(msg)
    settings = loaded_with(source, file, key_files.render(entry), load_gateway).settings
    is_first = entry.kind == "node" and len(settings.auth.nodes) == 1
    keyless = [name for name in _live_nodes(gateway) if name != entry.name] if is_first else []
    guarded(file, lambda: key_files.write(file, key_files.render(entry), is_new=True))
    in_force = reload_gateway(gateway, lambda: own_files.remove(file))
    if keyless:
        output.note(
            f"warning: {' and '.join(keyless)} registered without a key, and is refused from now "
            "on: have it join, too (`rolemeshctl gateway invite`, then `node join` there)"
        )
    return in_force


def _put_added(args: argparse.Namespace, key: str, entry: KeyEntry, file: Path) -> None:
    text = key_files.render(entry)
    if args.json:
        output.put_json({"name": entry.name, "key": key, "file": str(file), "content": text})
        return
    output.put(key)
    if args.print_only:
        output.put(f"\n# {file}\n{text.rstrip()}")


def _limit_key(args: argparse.Namespace, source: ConfigSource) -> int:
    limits = _limits(args)
    if not limits:
        msg = "say what to change: --roles, --priority, --max-concurrent and the like"
        raise BadUsage(msg)
    gateway = _gateway(args)
    file, old = _own(args, source)
    limits["admin"] = bool(limits.get("admin", old.admin))
    new = dataclasses.replace(old, **limits)
    _ = loaded_with(source, file, key_files.render(new), load_gateway)
    guarded(file, lambda: key_files.write(file, key_files.render(new), is_new=False))
    in_force = reload_gateway(
        gateway, lambda: key_files.write(file, key_files.render(old), is_new=False)
    )
    if args.json:
        output.put_json({"name": new.name, "file": str(file), **new.limits()})
    else:
        output.put(f"{args.name} changed: {file}; {in_force}")
    return EXIT_OK


def _revoke_key(args: argparse.Namespace, source: ConfigSource) -> int:
    gateway = _gateway(args)
    file, old = _own(args, source)
    _ = loaded_with(source, file, None, load_gateway)
    guarded(file, lambda: own_files.remove(file))
    in_force = reload_gateway(
        gateway, lambda: key_files.write(file, key_files.render(old), is_new=True)
    )
    if args.json:
        output.put_json({"name": old.name, "file": str(file)})
    else:
        output.put(f"{args.name} revoked: {file} removed; {in_force}")
    return EXIT_OK


# -- files -------------------------------------------------------------------------------------


def _own(args: argparse.Namespace, source: ConfigSource) -> tuple[Path, KeyEntry]:
    """Return the file of a key that we wrote, wherever it was written to."""
    entry = KeyEntry(kind=_kind(args), name=args.name, key_sha256="")
    node = tree.find(merged(source), entry.path)
    if node is None:
        directory = _directory(args)
        require_writable(directory, "gateway")
        msg = f"there is no {entry.kind} key {args.name!r} in {directory} or beside it"
        raise NotThere(msg)
    file = Path(node.origin.source)
    if file.name != entry.file_name:
        msg = f"{args.name} stands at {node.origin}, which rolemeshctl did not write: edit it there"
        raise Failed(msg)
    require_writable(file.parent, "gateway")
    return file, key_files.read_own(file, entry.kind, args.name)


# -- the gateway -------------------------------------------------------------------------------


def _gateway(args: argparse.Namespace) -> GatewayAddress | None:
    """Return the gateway that reads what is written, None where it is not known."""
    if args.directory is not None and not args.url:
        return None
    return find_gateway(args) if args.url else GatewayAddress(sockets=control_sockets())


def _live_nodes(gateway: GatewayAddress | None) -> tuple[str, ...]:
    """Return the nodes that report to the gateway, none where it cannot be asked."""
    if gateway is None:
        return ()
    try:
        nodes = GatewayApi(gateway).get("status", has="nodes")["nodes"]
    except CtlError:
        return ()
    return tuple(str(node.get("node_id")) for node in nodes if node.get("state") == "live")


def reload_gateway(gateway: GatewayAddress | None, undo: Undo) -> str:
    """Have the gateway read what was written; returns what is to be said of it.

    Raises BadConfig when it refuses, after `undo`.
    """
    if gateway is None:
        return "in force once the gateway that reads it reloads (SIGHUP)"
    try:
        GatewayApi(gateway).post("reload")
    except NotReachable as error:
        return f"not in force yet ({error}), then `systemctl reload rolemesh-gateway`"
    except ApiError as refusal:
        undo()
        put_problems(refusal.error.get("problems", []))
        msg = f"the gateway refuses its configuration ({refusal}): nothing was changed"
        raise BadConfig(msg) from refusal
    return "in force"
