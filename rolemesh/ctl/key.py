"""`rolemeshctl key`: the keys of clients and nodes, one drop-in each.

A change is checked with the rest of the configuration before it is written, and taken back when
the gateway refuses it.
"""

import argparse
import dataclasses
import hashlib
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rolemesh.config import tree
from rolemesh.config.dropins import ConfigSource, read_fragments
from rolemesh.config.merge import SHAPES, merge
from rolemesh.config.tree import Node
from rolemesh.ctl import key_files, key_list, output
from rolemesh.ctl.gateway_address import (
    GatewayAddress,
    add_gateway_options,
    control_sockets,
    find_gateway,
)
from rolemesh.ctl.gateway_api import ApiError, GatewayApi
from rolemesh.ctl.key_files import KeyEntry, Kind
from rolemesh.ctl.key_staging import problems_with
from rolemesh.ctl.outcomes import EXIT_OK, BadConfig, BadUsage, Failed, NotReachable, NotThere
from rolemesh.ctl.reload import put_problems
from rolemesh.errors import Problem

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
    key = f"rm-{secrets.token_urlsafe(KEY_BYTES)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    entry = KeyEntry(kind=_kind(args), name=args.name, key_sha256=digest, **_limits(args))
    file = _directory(args) / entry.file_name
    if args.print_only:
        _put_added(args, key, entry, file)
        return EXIT_OK
    if args.runtime:
        _guarded(file, lambda: key_files.make_directory(file.parent))
    _require_writable(file.parent)
    taken = tree.find(_merged(source), entry.path)
    if taken is not None:
        msg = f"there is a key {args.name!r} already, at {taken.origin}: choose another name"
        raise Failed(msg)
    _refuse_if_bad(source, file, key_files.render(entry))
    _guarded(file, lambda: key_files.write(file, key_files.render(entry), is_new=True))
    in_force = _reload(args, undo=lambda: key_files.remove(file))
    _put_added(args, key, entry, file)
    output.note(f"{args.name}: {file}; {in_force}")
    return EXIT_OK


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
    file, old = _own(args, source)
    limits["admin"] = bool(limits.get("admin", old.admin))
    new = dataclasses.replace(old, **limits)
    _refuse_if_bad(source, file, key_files.render(new))
    _guarded(file, lambda: key_files.write(file, key_files.render(new), is_new=False))
    in_force = _reload(
        args, undo=lambda: key_files.write(file, key_files.render(old), is_new=False)
    )
    if args.json:
        output.put_json({"name": new.name, "file": str(file), **new.limits()})
    else:
        output.put(f"{args.name} changed: {file}; {in_force}")
    return EXIT_OK


def _revoke_key(args: argparse.Namespace, source: ConfigSource) -> int:
    file, old = _own(args, source)
    _refuse_if_bad(source, file, None)
    _guarded(file, lambda: key_files.remove(file))
    in_force = _reload(args, undo=lambda: key_files.write(file, key_files.render(old), is_new=True))
    if args.json:
        output.put_json({"name": old.name, "file": str(file)})
    else:
        output.put(f"{args.name} revoked: {file} removed; {in_force}")
    return EXIT_OK


# -- files -------------------------------------------------------------------------------------


def _own(args: argparse.Namespace, source: ConfigSource) -> tuple[Path, KeyEntry]:
    """Return the file of a key that we wrote, wherever it was written to."""
    entry = KeyEntry(kind=_kind(args), name=args.name, key_sha256="")
    node = tree.find(_merged(source), entry.path)
    if node is None:
        directory = _directory(args)
        _require_writable(directory)
        msg = f"there is no {entry.kind} key {args.name!r} in {directory} or beside it"
        raise NotThere(msg)
    file = Path(node.origin.source)
    if file.name != entry.file_name:
        msg = f"{args.name} stands at {node.origin}, which rolemeshctl did not write: edit it there"
        raise Failed(msg)
    _require_writable(file.parent)
    return file, key_files.read_own(file, entry.kind, args.name)


def _merged(source: ConfigSource) -> Node:
    reading = read_fragments(source)
    problems = [found.problem() for found in reading.findings if not found.is_warning]
    _refuse(tuple(problems))
    return merge(reading.fragments, SHAPES["gateway"]).root


def _require_writable(directory: Path) -> None:
    if os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        return
    try:
        directory.stat()
    except FileNotFoundError as error:
        msg = f"there is no directory {directory}: is rolemesh-gateway installed on this host?"
        raise Failed(msg) from error
    except OSError:
        pass  # it may be there
    msg = f"you may not change {directory}: use sudo, or --directory"
    raise Failed(msg)


def _guarded(file: Path, change: Callable[[], None]) -> None:
    try:
        change()
    except OSError as error:
        msg = f"{file} cannot be written: {error.strerror}; use sudo, or --directory"
        raise Failed(msg) from error


def _refuse_if_bad(source: ConfigSource, file: Path, text: str | None) -> None:
    _refuse(problems_with(source, file, text))


def _refuse(problems: tuple[Problem, ...]) -> None:
    if problems:
        put_problems(problems)
        msg = "the configuration would be refused: nothing was changed"
        raise BadConfig(msg)


# -- the gateway -------------------------------------------------------------------------------


def _reload(args: argparse.Namespace, *, undo: Callable[[], None]) -> str:
    """Have the gateway read what was written; returns what is to be said of it."""
    if args.directory is not None and not args.url:
        return "in force once the gateway that reads it reloads (SIGHUP)"
    address = find_gateway(args) if args.url else GatewayAddress(sockets=control_sockets())
    try:
        GatewayApi(address).post("reload")
    except NotReachable as error:
        return f"not in force yet ({error}), then `systemctl reload rolemesh-gateway`"
    except ApiError as refusal:
        undo()
        put_problems(refusal.error.get("problems", []))
        msg = f"the gateway refuses its configuration ({refusal}): nothing was changed"
        raise BadConfig(msg) from refusal
    return "in force"
