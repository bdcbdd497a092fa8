"""`rolemeshctl model list`: the models of this host, who wrote them down, and how they are."""

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

from rolemesh.config.load import load_node
from rolemesh.config.settings import ModelSettings
from rolemesh.ctl import output
from rolemesh.ctl.agent_place import agent_place
from rolemesh.ctl.changes import loaded
from rolemesh.ctl.local_agent import agent_at
from rolemesh.ctl.outcomes import EXIT_OK
from rolemesh.ctl.output import Cell


def run(args: argparse.Namespace) -> int:
    """Print the models."""
    place = agent_place(args.agent, args.directory)
    # Without the keys: whoever may see the models may not see those.
    settings = loaded(place.source, partial(load_node, reads_keys=False)).settings
    agent = agent_at(place)
    reported = {} if agent is None else {each["model_id"]: each for each in agent.node["models"]}
    models = [_model(model, reported.get(model.model_id, {})) for model in settings.models.values()]
    if args.json:
        output.put_json({"models": models})
        return EXIT_OK
    if not models:
        output.note("there is no model: sudo rolemeshctl model add FILE --role ROLE")
        return EXIT_OK
    output.put_table(
        ("MODEL", "ROLES", "STATE", "CONTEXT", "SLOTS", "FILE", "SET BY", "REASON"),
        map(_row, models),
    )
    if agent is None:
        output.note("the agent does not answer, or not to you: how they are is not known")
    return EXIT_OK


def _model(model: ModelSettings, reported: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model_id": model.model_id,
        "roles": list(model.roles),
        "path": str(model.path),
        "context_size": model.context_size,
        "parallel": model.parallel,
        "set_by": model.origin,
        "state": reported.get("state"),
        "usable": reported.get("usable"),
        "reason": reported.get("reason", ""),
    }


def _row(model: Mapping[str, Any]) -> tuple[object, ...]:
    state = model["state"]
    return (
        model["model_id"],
        ",".join(model["roles"]),
        None if state is None else Cell(str(state), "green" if model["usable"] else "red"),
        model["context_size"],
        model["parallel"],
        model["path"],
        model["set_by"],
        model["reason"],
    )
