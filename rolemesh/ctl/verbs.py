"""The verbs, in the order in which help lists them, and which module carries each out.

Such a module has `DESCRIPTION`, `EXAMPLES` (lines of `command # what it does`),
`add_arguments(parser)` and `run(args) -> exit code`.
"""

import argparse
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, cast


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: the module that carries it out, and what it does in a few words."""

    module: str
    summary: str


class VerbModule(Protocol):
    """What every verb's module has."""

    DESCRIPTION: str
    EXAMPLES: tuple[str, ...]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


VERBS: Final[Mapping[str, Verb]] = {
    "status": Verb("status", "the gateway, its nodes and what they serve"),
    "aliases": Verb("aliases", "every alias: whether it is usable, and who answers it"),
    "nodes": Verb("nodes", "every node: its models, instances and GPUs"),
    "models": Verb("models", "every model of every node: its state, size, and where it is"),
    "explain": Verb("explain", "who would answer an alias now, and why nobody else"),
    "ps": Verb("ps", "the requests that run or wait"),
    "cancel": Verb("cancel", "end requests"),
    "load": Verb("load", "have a node load a model"),
    "unload": Verb("unload", "empty an instance, or every instance of a model"),
    "switch": Verb("switch", "have an instance run another model"),
    "pin": Verb("pin", "keep an instance from being given to other models"),
    "unpin": Verb("unpin", "take a pin back"),
    "drain": Verb("drain", "give a node or an instance no new requests"),
    "undrain": Verb("undrain", "give a node or an instance requests again"),
    "reload": Verb("reload", "have the gateway read its configuration again"),
    "config": Verb("config", "check, print and explain the configuration files of this host"),
    "key": Verb("key", "add, list, limit and revoke the keys of clients and nodes"),
    "gateway": Verb("gateway", "invite: let another host join this gateway"),
    "node": Verb(
        "node", "what one node would do with a model, its GPUs; join: be a gateway's node"
    ),
    "model": Verb("model", "add, list and remove the models of this host"),
    "trace": Verb("trace", "what became of one request, on every host"),
}

HIDDEN: Final[Mapping[str, Verb]] = {
    "complete": Verb("complete", "words for the completion of a command line"),
}


def load_verb(name: str) -> VerbModule:
    """Return the module of a verb."""
    verb = VERBS.get(name) or HIDDEN[name]
    module = importlib.import_module(f"rolemesh.ctl.{verb.module}")
    return cast("VerbModule", module)
