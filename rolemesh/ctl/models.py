"""`rolemeshctl models`: every model of every node, where it is and what it takes."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rolemesh.ctl import output
from rolemesh.ctl.agents import Agent, agents_by_gateway, find_agents, local_agents
from rolemesh.ctl.gateway_address import add_gateway_options
from rolemesh.ctl.loading import progress_text
from rolemesh.ctl.outcomes import EXIT_OK, CtlError, NotReachable
from rolemesh.ctl.output import Cell

DESCRIPTION: Final = (
    "Show every model of every node: how far it is, its roles, its size, the memory that it needs, on\n"
    "which instances it is, and why it cannot answer. Where no gateway is found, those of this host."
)
EXAMPLES: Final = (
    "rolemeshctl models",
    "rolemeshctl models --node gpubox",
    "rolemeshctl models --json | jq -r '.models[] | select(.usable | not) | .model_id, .reason'",
)

PATIENCE_S: Final = 5.0
"""How long a node may take to say more of its models than the gateway knows."""

AT_ONCE: Final = 16

_COLOURS: Final[Mapping[str, output.Colour]] = {
    "ready": "green",
    "loading": "yellow",
    "failed": "red",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument(
        "--node", metavar="NODE", help="this one alone, as `nodes` shows it (default: every node)"
    )
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the models."""
    agents, silence = _every_agent(args)
    models = [model for node in _told_by(agents) for model in _models_of(node)]
    if args.json:
        output.put_json({"models": models})
    elif models:
        output.put_table(
            (
                *("NODE", "MODEL", "ROLES", "STATE", "SIZE", "QUANT", "CONTEXT", "NEEDS", "ON"),
                "REASON",
            ),
            map(_row, models),
        )
    else:
        output.note("no model is configured: add one with `rolemeshctl model add`")
    if silence:
        output.note(f"only this host's: {silence}")
    return EXIT_OK


def _every_agent(args: argparse.Namespace) -> tuple[list[Agent], str]:
    """Return the agents of all nodes, or those of this host and why not the others."""
    if args.node is not None:
        return find_agents(args, timeout_s=PATIENCE_S), ""
    try:
        return agents_by_gateway(args, PATIENCE_S), ""
    except NotReachable as error:
        own = [] if args.url or args.key_file else local_agents(timeout_s=PATIENCE_S)
        if not own:
            raise
        return own, str(error)


def _told_by(agents: list[Agent]) -> Iterator[Mapping[str, Any]]:
    """Yield what each agent says of its node; of one that says nothing what the gateway knows."""
    # Not at the top: other verbs use what this module has, and need no threads.
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    with ThreadPoolExecutor(min(AT_ONCE, max(len(agents), 1))) as pool:
        yield from pool.map(_asked, agents)


def _asked(agent: Agent) -> Mapping[str, Any]:
    if not agent.can_be_heard:
        return agent.node
    try:
        return {**agent.node, **agent.get(has="models")}
    except CtlError:
        return agent.node


def _models_of(node: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    unusable = node.get("reason") or ""
    for model in node.get("models", []):
        model_id = model.get("model_id")
        yield {
            "node_id": node.get("node_id"),
            **model,
            "usable": bool(model.get("usable")) and not unusable,
            "reason": unusable or model.get("reason", ""),
            "on": [
                each.get("instance")
                for each in node.get("instances", [])
                if model_id in (each.get("model_id"), each.get("next_model_id"))
                and each.get("state") not in ("stopped", "failed")
            ],
        }


def _row(model: Mapping[str, Any]) -> tuple[object, ...]:
    state = progress_text(model) or "unknown"
    colour = _COLOURS.get(str(model.get("state")), "dim") if model["usable"] else "red"
    return (
        model["node_id"],
        model.get("model_id"),
        ",".join(model.get("roles", [])),
        Cell(state, colour),
        output.memory(model.get("file_mib")),
        model.get("quantisation"),
        model.get("context_size") or model.get("trained_context"),
        output.memory(model.get("need_mib")),
        ",".join(map(str, model["on"])),
        None if model["usable"] else model["reason"],
    )
