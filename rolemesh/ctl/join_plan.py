"""How a node is to be reached: its name, where its agent listens, and what the gateway is told."""

import argparse
import errno
import re
import socket
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from rolemesh.address import UpstreamAddress
from rolemesh.config import tree
from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import Loaded, load_node
from rolemesh.config.settings import Listen, NodeSettings
from rolemesh.ctl.agent_place import AgentPlace, other_directories
from rolemesh.ctl.join_file import Join
from rolemesh.ctl.local_address import address_toward, in_url, is_local_only, is_wildcard
from rolemesh.ctl.outcomes import BadUsage, Failed, NotReachable
from rolemesh.errors import ConfigError
from rolemesh.names import NODE_ID_PATTERN

_LAST_PORT: Final = 65535


def plan_join(
    args: argparse.Namespace,
    place: AgentPlace,
    gateway: UpstreamAddress,
    base: Loaded[NodeSettings],
) -> Join:
    """Return what is to be written; `base` is the configuration without it. Raises a CtlError."""
    local = _local_address(gateway)
    host, port = _parse_listen(args.listen) if args.listen else (None, None)
    settings = base.settings
    if host is None:
        hosts = _hosts(settings, local)
    elif is_local_only(host) and not is_local_only(local) and not args.advertise_url:
        msg = (
            f"--listen {args.listen} is for this host only, and the gateway is on another: name "
            "where that reaches the agent with --advertise-url"
        )
        raise BadUsage(msg)
    else:
        hosts = (host,)
    if port is None and place.name and tree.find(base.root, ("listen", "port")) is None:
        port = _free_port(place, settings.listen.port)
    named = local if host is None or is_wildcard(host) else host
    scheme = "http" if settings.listen.tls is None else "https"
    url = f"{scheme}://{in_url(named)}:{port or settings.listen.port}"
    return Join(
        gateway=args.gateway,
        key_file=place.key_file,
        advertise_url=_checked_url("--advertise-url", args.advertise_url or url),
        ca_file=args.ca_file and args.ca_file.absolute(),
        node_id=_node_id(args.name, place, base),
        hosts=hosts,
        port=port,
    )


def checked_gateway(url: str) -> str:
    """Return a gateway's URL in the form in which it is written; raises BadUsage."""
    return _checked_url("URL", url).rstrip("/").removesuffix("/v1")


def _checked_url(what: str, url: str) -> str:
    try:
        parsed = UpstreamAddress.parse_url(url)
    except ValueError as error:
        msg = f"{what}: {error}"
        raise BadUsage(msg) from error
    if is_wildcard(parsed.host):
        msg = f"{what}: {parsed.host} is no address that others could connect to"
        raise BadUsage(msg)
    return url


def _local_address(gateway: UpstreamAddress) -> str:
    try:
        return address_toward(gateway.host, gateway.port)
    except socket.gaierror as error:
        msg = f"the name {gateway.host} is not known here: {error.strerror}"
        raise NotReachable(msg) from error
    except OSError as error:
        msg = f"there is no way from this host to {gateway.host}: {error.strerror}"
        raise NotReachable(msg) from error


def _parse_listen(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port or _has_more(text):
        msg = f"--listen: expected HOST:PORT, such as 10.0.0.7:8100 or [::]:8100, found {text!r}"
        raise BadUsage(msg)
    return host, port


def _has_more(text: str) -> bool:
    return any(character in text for character in "/?#@")


def _hosts(settings: NodeSettings, local: str) -> tuple[str, ...] | None:
    """Return where to listen so that the gateway gets through; None: the agent does already."""
    known = settings.listen.host
    if local in known or any(map(is_wildcard, known)):
        return None
    return (*(host for host in known if not is_local_only(host)), local)


def _node_id(wanted: str | None, place: AgentPlace, base: Loaded[NodeSettings]) -> str | None:
    if wanted is not None:
        if not re.fullmatch(NODE_ID_PATTERN, wanted):
            msg = f"--name: {wanted!r} is not a name of at most 63 letters, digits and ._-"
            raise BadUsage(msg)
        return wanted
    if place.name and tree.find(base.root, ("node_id",)) is None:
        # Two agents of one host are two nodes.
        longest = 62 - len(place.name)
        return f"{base.settings.node_id[:longest]}-{place.name}"
    return None


def _free_port(place: AgentPlace, first: int) -> int:
    """Return a port that no other agent of this host is configured for."""
    taken = {_port(directory) for directory in other_directories(place)}
    return next(port for port in range(first, _LAST_PORT) if port not in taken)


def _port(directory: Path) -> int | None:
    try:
        return load_node(ConfigSource(program="node", config_dir=directory)).settings.listen.port
    except ConfigError:
        return None


def require_in_force(join: Join, settings: NodeSettings) -> None:
    """Raise Failed when other files outvote what is to be written."""
    listen = settings.listen
    outvoted = [
        name
        for name, wanted, found in (
            ("node_id", join.node_id, settings.node_id),
            ("listen.host", join.hosts, listen.host),
            ("listen.port", join.port, listen.port),
            ("advertise_url", join.advertise_url, settings.advertise_url),
        )
        if wanted is not None and wanted != found
    ]
    if outvoted:
        msg = (
            f"a file that is read after this one sets {' and '.join(outvoted)} otherwise: nothing "
            "was changed; `rolemeshctl config show --program node` says which"
        )
        raise Failed(msg)


def require_free_port(settings: NodeSettings, held: Listen | None = None) -> None:
    """Raise Failed, naming the address, where the agent could not listen.

    `held` is where it does now. Nobody else can be tried for behind that: its restart tells.
    """
    for host in settings.listen.host:
        if held is not None and held.port == settings.listen.port and _overlap(host, held.host):
            continue
        try:
            found = socket.getaddrinfo(host, settings.listen.port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, address = found[0]
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                trial.bind(address)
        except OSError as error:
            where = f"{in_url(host)}:{settings.listen.port}"
            taken = error.errno == errno.EADDRINUSE
            why = "another program listens there" if taken else str(error.strerror or error)
            msg = f"the agent cannot listen on {where}: {why}; choose with --listen HOST:PORT"
            raise Failed(msg) from error


def _overlap(host: str, held: tuple[str, ...]) -> bool:
    return host in held or any(map(is_wildcard, (host, *held)))
