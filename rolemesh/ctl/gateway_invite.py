"""`rolemeshctl gateway invite`: a key for a new node, and the line that makes use of it there."""

import argparse
import json
import os
import re
import secrets
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rolemesh.address import UpstreamAddress
from rolemesh.config import tree
from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import Loaded, load_gateway
from rolemesh.config.settings import GatewaySettings, Listen
from rolemesh.ctl import key, output
from rolemesh.ctl.changes import loaded, require_writable
from rolemesh.ctl.gateway_address import (
    SOCKET_PREFIX,
    URL_VARIABLE,
    GatewayAddress,
    control_sockets,
)
from rolemesh.ctl.key_files import KeyEntry
from rolemesh.ctl.local_address import in_url, is_local_only, is_wildcard, outward_addresses
from rolemesh.ctl.outcomes import EXIT_OK, BadUsage, Failed
from rolemesh.names import NODE_ID_PATTERN

_SOMEWHERE: Final = "ADDRESS"
"""Stands for this host's address where it has none yet."""


def run(args: argparse.Namespace) -> int:
    """Make the key, put it in force, and print the line."""
    if args.name is not None and not re.fullmatch(NODE_ID_PATTERN, args.name):
        msg = f"{args.name!r} is not a node's name: at most 63 letters, digits and ._-"
        raise BadUsage(msg)
    directory = key.PERSISTENT if args.directory is None else args.directory.absolute()
    source = ConfigSource(program="gateway", config_dir=args.directory and directory)
    require_writable(directory, "gateway")
    found = loaded(source, load_gateway)
    is_own = args.directory is not None
    if args.reached_at:
        url = _checked(args.reached_at)
    else:
        url = _reached_at(found, directory, is_own=is_own)
    made, digest = key.new_key()
    name = args.name or f"node-{secrets.token_hex(3)}"
    entry = KeyEntry(kind="node", name=name, key_sha256=digest)
    file = directory / entry.file_name
    gateway = _gateway(is_own=is_own)
    in_force = key.put_in_force(source, entry, file, gateway)
    command = f"sudo rolemeshctl node join {shlex.quote(url)} --token {made}"
    if args.name is not None:
        command += f" --name {name}"
    if args.json:
        told = {"name": name, "url": url, "token": made, "file": str(file), "command": command}
        output.put_json({**told, "in_force": in_force})
        return EXIT_OK
    output.note(f"{file}: {in_force}")
    for hint in _hints(found.settings, url):
        output.note(hint)
    output.note("Type this on the host that shall join; the token is shown only now:")
    output.put(command)
    return EXIT_OK


def _gateway(*, is_own: bool) -> GatewayAddress | None:
    """Return the gateway to reload; `is_own`: one with a directory of its own.

    That a variable names; None where it does not.
    """
    if not is_own:
        return GatewayAddress(sockets=control_sockets())
    url = os.environ.get(URL_VARIABLE, "")
    if not url.startswith(SOCKET_PREFIX):
        return None
    return GatewayAddress(sockets=(Path(url.removeprefix(SOCKET_PREFIX)),))


def _checked(url: str) -> str:
    try:
        address = UpstreamAddress.parse_url(url)
    except ValueError as error:
        msg = f"--url: {error}"
        raise BadUsage(msg) from error
    return url.rstrip("/").removesuffix("/v1") if address.prefix else url.rstrip("/")


def _reached_at(found: Loaded[GatewaySettings], directory: Path, *, is_own: bool) -> str:
    """Return the URL for other hosts; raises Failed, with what helps, where there is none."""
    listen = found.settings.listen
    scheme = "http" if listen.tls is None else "https"
    hosts = [host for host in listen.host if not is_local_only(host)]
    if not hosts:
        _say_how_to_open(found, directory, is_own=is_own)
        where = " and ".join(f"{in_url(host)}:{listen.port}" for host in listen.host)
        msg = (
            f"this gateway listens on {where} only, where no other host reaches it: nothing was "
            "changed. Open it as above, or name with --url where it is reached: through a proxy, or "
            f"at {scheme}://{in_url(listen.host[0])}:{listen.port} by a node on this host itself"
        )
        raise Failed(msg)
    if not is_wildcard(hosts[0]):
        return f"{scheme}://{in_url(hosts[0])}:{listen.port}"
    addresses = outward_addresses()
    if not addresses:
        msg = "this host has no address that others could use; name one with --url"
        raise Failed(msg)
    if addresses[1:]:
        output.note(f"this host is also {', '.join(addresses[1:])}: choose one with --url")
    return f"{scheme}://{in_url(addresses[0])}:{listen.port}"


def _say_how_to_open(found: Loaded[GatewaySettings], directory: Path, *, is_own: bool) -> None:
    """Write the commands that let other hosts in, with what the configuration then demands."""
    settings = found.settings
    output.note("To let other hosts in:")
    if not settings.auth.clients and not settings.auth.open:
        output.note("")
        output.note("# From then on clients need a key. This prints one:")
        where = f" --directory {shlex.quote(str(directory))}" if is_own else ""
        output.note(f"sudo rolemeshctl key add me{where}")
    address = next(iter(outward_addresses()), _SOMEWHERE)
    host = tree.find(found.root, ("listen", "host"))
    hosts = [*settings.listen.host, address]
    output.note("")
    if host is not None:
        output.note(f"# {host.origin} says where it listens. Edit it:")
        output.note(f"#   listen: {{host: {_flow(hosts)}}}")
    lines = list(_drop_in(settings, None if host else hosts))
    if lines:
        names = (f"{number}-open.yaml" for number in range(20, 100))
        file = next(path for name in names if not (path := directory / name).exists())
        output.note(f"sudo tee {shlex.quote(str(file))} <<'END'")
        for line in lines:
            output.note(line)
        output.note("END")
    output.note(_how_to_reload(is_own=is_own))
    output.note("")


def _how_to_reload(*, is_own: bool) -> str:
    url = os.environ.get(URL_VARIABLE, "")
    if not is_own:
        return "sudo rolemeshctl reload"
    if not url:
        return "# Then have the gateway that reads it reload (SIGHUP)."
    return f"sudo rolemeshctl reload --url {shlex.quote(url)}"


def _drop_in(settings: GatewaySettings, hosts: list[str] | None) -> Iterator[str]:
    if hosts is not None:
        yield f"listen: {{host: {_flow(hosts)}}}"
    if not settings.aliases_from_roles:
        yield "aliases: {from_roles: true}   # what a node serves can be asked for at once"


def _flow(hosts: list[str]) -> str:
    return json.dumps(hosts)


def _hints(settings: GatewaySettings, url: str) -> Iterator[str]:
    """Yield what may be in the way of the node, or of who asks for it."""
    if not settings.aliases_from_roles:
        yield (
            "A role that the node brings is answered only where `models` names it; "
            "`aliases: {from_roles: true}` makes every role an alias at once."
        )
    if _is_closed(settings.listen) and not is_local_only(UpstreamAddress.parse_url(url).host):
        yield f"The gateway itself listens on this host only: something must pass on {url} to it."
    if url.startswith("https://"):
        yield (
            "Its certificate must be for the name in that URL. Where the authority is one of your "
            "own, the other host needs its file: node join --ca-file FILE."
        )


def _is_closed(listen: Listen) -> bool:
    return all(map(is_local_only, listen.host))
