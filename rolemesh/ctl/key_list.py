"""`rolemeshctl key list`: the keys as the gateway knows them; where none answers, as files say."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rolemesh.config import tree
from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import Loaded, load_gateway
from rolemesh.config.settings import GatewaySettings
from rolemesh.ctl import output
from rolemesh.ctl.config import daemon_environment
from rolemesh.ctl.gateway_address import find_gateway
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.outcomes import EXIT_OK, BadConfig, NotReachable
from rolemesh.ctl.reload import put_problems
from rolemesh.errors import ConfigError

_ANY: Final = "any"


def run(args: argparse.Namespace, source: ConfigSource) -> int:
    """Print the keys."""
    reply = {"keys": list(_in_files(source))} if args.directory else _known(args, source)
    if args.json:
        output.put_json(reply)
        return EXIT_OK
    keys = [key for key in reply["keys"] if not args.node or key.get("kind") == "node"]
    if not keys:
        output.note("there are no keys: any caller on this host is served")
        return EXIT_OK
    head = ("KEY", "KIND", "ROLES", "PRIORITY", "AT ONCE", "A MINUTE", "ADMIN")
    if all("where" in key for key in keys):
        output.put_table((*head, "SET BY"), ((*_row(key), key["where"]) for key in keys))
    else:
        counts = ((*_row(key), key.get("running"), key.get("requests")) for key in keys)
        output.put_table((*head, "RUNNING", "ENDED"), counts)
    return EXIT_OK


def _known(args: argparse.Namespace, source: ConfigSource) -> dict[str, Any]:
    try:
        return GatewayApi(find_gateway(args)).get("keys", has="keys")
    except NotReachable as error:
        if args.url:
            raise
        output.note(f"as the files of this host say, for {error}")
        return {"keys": list(_in_files(source))}


def _row(key: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        key["name"],
        key.get("kind") or "client",
        ",".join(sorted(key.get("roles") or [_ANY])),
        key.get("priority"),
        key.get("max_concurrent"),
        key.get("requests_per_minute"),
        "yes" if key.get("admin") else None,
    )


def _in_files(source: ConfigSource) -> Iterator[dict[str, Any]]:
    try:
        loaded = load_gateway(source, daemon_environment(source))
    except ConfigError as error:
        put_problems(error.problems)
        msg = "the configuration is refused"
        raise BadConfig(msg) from error
    auth = loaded.settings.auth
    for kind, section, keys in (("client", "clients", auth.clients), ("node", "nodes", auth.nodes)):
        for key in keys:
            yield {
                "name": key.name,
                "kind": kind,
                "roles": None if key.roles is None else sorted(key.roles),
                "priority": None if key.priority is None else key.priority.name.lower(),
                "max_concurrent": key.max_concurrent,
                "requests_per_minute": key.requests_per_minute,
                "admin": key.admin,
                "where": _where(loaded, section, key.name),
            }


def _where(loaded: Loaded[GatewaySettings], section: str, name: str) -> str:
    node = tree.find(loaded.root, ("auth", section, name))
    return "in a list of keys" if node is None else str(node.origin)
