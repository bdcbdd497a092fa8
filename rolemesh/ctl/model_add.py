"""`rolemeshctl model add`: a GGUF file becomes a model of this host, and answers by its roles."""

import argparse
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any, Final

from rolemesh.config import tree
from rolemesh.config.settings import NodeSettings
from rolemesh.config.tree import Node
from rolemesh.ctl import model_access, model_files, output
from rolemesh.ctl.agent_place import AgentPlace, agent_place
from rolemesh.ctl.agents import Agent
from rolemesh.ctl.changes import loaded_with, loader, merged, put_file, require_writable
from rolemesh.ctl.local_agent import agent_at
from rolemesh.ctl.model_files import ModelEntry
from rolemesh.ctl.model_fit import Use, estimate_text, fit_text, header_text, use_of
from rolemesh.ctl.model_roles import unanswered
from rolemesh.ctl.outcomes import EXIT_OK, BadUsage, CtlError, Failed
from rolemesh.llama.gguf import GgufError, GgufHeader, read_model
from rolemesh.llama.gguf_parts import model_parts
from rolemesh.names import parse_instance

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,99}")
_NOT_IN_ID: Final = re.compile(r"[^A-Za-z0-9._:+-]+")
_PART: Final = re.compile(r"-00001-of-[0-9]{5}$")
_OF_A_GPU: Final = re.compile(r"gpu[0-9]+(?:-mig[0-9]+)?")
_ON_A_GPU: Final = re.compile(r"gpu[0-9]+(?:-mig[0-9]+$)?")
_WITHOUT_GPUS: Final = "cpu0"
"""The instance that an agent without GPUs has of its own."""

_PAUSE_S: Final = 0.25
_NO_MODEL: Final = ("adapter", "mmproj")


def run(args: argparse.Namespace) -> int:
    """Add the model, and wait until the agent finds it usable."""
    place = agent_place(args.agent, args.directory)
    require_writable(place.directory, "node")
    path = args.file.absolute()
    header = _header(path)
    entry = _entry(args, path, place, use_of(header))
    file = place.directory / entry.file_name
    _require_new(entry, merged(place.source), file)
    _require_readable(path, place, entry.pin)
    text = model_files.render(entry)
    settings = loaded_with(place.source, file, text, loader(place)).settings
    if not args.json:
        output.put(f"{entry.model_id}: {header_text(header)}")
    is_running = not place.unit or place.is_running()
    put_file(place, file, text, old=None)
    _note_consequences(entry, place, settings)
    told = {"model_id": entry.model_id, "roles": list(entry.roles), "file": str(file)}
    if not is_running:
        fit = estimate_text(header, entry.context_size, entry.parallel or 1)
        return _not_running(args, place, {**told, "fit": fit})
    agent, fit = _usable(args, place, entry, told)
    if args.json:
        output.put_json({**told, "usable": True, "fit": fit})
        return EXIT_OK
    _put_added(entry, agent, settings, str(file))
    return EXIT_OK


def _header(path: Path) -> GgufHeader:
    try:
        header = read_model(path)
    except GgufError as error:
        raise Failed(str(error)) from error
    if header.kind in _NO_MODEL:
        msg = f"{path} is no model of its own ({header.kind}): name it in the file of its model"
        raise Failed(msg)
    return header


def _entry(args: argparse.Namespace, path: Path, place: AgentPlace, use: Use | None) -> ModelEntry:
    model_id = args.id or _NOT_IN_ID.sub("-", _PART.sub("", path.stem)).strip("-._:+")[:100]
    if not path.as_posix().isprintable():
        msg = f"{str(path)!r} is no path that a configuration file could hold: rename it"
        raise BadUsage(msg)
    if not _ID.fullmatch(model_id):
        msg = f"{model_id!r} is not a model's name of letters, digits and ._:+-; give one with --id"
        raise BadUsage(msg)
    for role in args.roles:
        if not role or not role.isprintable() or {" ", ","} & set(role) or len(role) > 200:
            msg = f"{role!r} is not a role: a name without spaces and commas"
            raise BadUsage(msg)
    if args.pin is not None:
        try:
            parse_instance(args.pin)
        except ValueError as error:
            msg = f"--pin: {error}"
            raise BadUsage(msg) from error
    return ModelEntry(
        model_id=model_id,
        path=path,
        roles=tuple(dict.fromkeys(args.roles)),
        context_size=args.context,
        parallel=args.parallel,
        embeddings=use == "embeddings",
        rerank=use == "rerank",
        pin=args.pin,
        beside=() if args.pin is None else _beside(args.pin, place),
    )


def _beside(pin: str, place: AgentPlace) -> tuple[str, ...]:
    """Return the other instances that the agent has of its own: once one is named, all must be.

    Raises Failed when `pin` is on a GPU that the agent does not have.
    """
    agent = agent_at(place)
    if agent is None:
        return ()
    instances = [str(each.get("instance")) for each in agent.node.get("instances", [])]
    gpus = [str(each.get("gpu")) for each in agent.node.get("gpus", [])]
    gpu = _ON_A_GPU.match(pin)
    if gpu is not None and pin not in instances and gpu[0] not in gpus:
        has = f"but {' and '.join(gpus)}" if gpus else "and no GPU that the agent may use"
        msg = f"there is no {gpu[0]} here, {has}: pin it somewhere else"
        raise Failed(msg)
    own = [name for name in instances if _OF_A_GPU.fullmatch(name)]
    if not gpus and _WITHOUT_GPUS in instances:
        own.append(_WITHOUT_GPUS)
    return tuple(name for name in own if name != pin)


def _require_new(entry: ModelEntry, root: Node, file: Path) -> None:
    known = tree.find(root, ("models", entry.model_id))
    if known is not None:
        ours = str(file) == known.origin.source
        remedy = (
            f"rolemeshctl model remove {entry.model_id}" if ours else "choose another with --id"
        )
        msg = f"there is a model {entry.model_id} already, at {known.origin}: {remedy}"
        raise Failed(msg)
    if os.path.lexists(file):
        msg = f"{file} exists already, and is not about {entry.model_id}: choose another with --id"
        raise Failed(msg)
    if entry.pin is None:
        return
    taken = tree.find(root, ("instances", entry.pin, "model"))
    if taken is not None:
        msg = f"{entry.pin} runs {taken.value} already, by {taken.origin}: pin it somewhere else"
        raise Failed(msg)


def _require_readable(path: Path, place: AgentPlace, pin: str | None) -> None:
    if not place.unit:
        return  # it acts as whoever started it
    units = (model_access.LLAMA_UNIT.format(pin or "cpu0"), place.unit)
    services = tuple(filter(None, map(model_access.find_service, units)))
    lines = model_access.obstacles(model_parts(path), services)
    if lines:
        for line in lines:
            output.note(line)
        msg = f"{path} could not be read by the services that need it: nothing was changed"
        raise Failed(msg)


def _note_consequences(entry: ModelEntry, place: AgentPlace, settings: NodeSettings) -> None:
    if not place.unit:
        file = place.directory / entry.file_name
        output.note(f"{file}: in force once the agent that reads it reloads (SIGHUP)")
    if entry.pin is not None:
        output.note(
            f"It stays on {entry.pin}. The agent has the instances now that its files name "
            f"({', '.join(settings.instances)}), and makes no others beside them."
        )


def _not_running(args: argparse.Namespace, place: AgentPlace, told: Mapping[str, Any]) -> int:
    command = f"systemctl enable --now {place.unit}"
    if args.json:
        output.put_json({**told, "usable": None, "start": command})
        return EXIT_OK
    output.put(f"{told['model_id']}: {told['fit']}")
    output.put(f"{told['model_id']} is added: {told['file']}")
    output.put(f"The agent does not run; start it: sudo {command}")
    return EXIT_OK


def _usable(
    args: argparse.Namespace, place: AgentPlace, entry: ModelEntry, told: Mapping[str, Any]
) -> tuple[Agent, str]:
    """Return the agent once it finds the model usable, and how that fits; raises Failed.

    One that is pinned is loaded at once: that is waited for, too.
    """
    end = time.monotonic() + args.wait
    with output.Progress() as progress:
        while True:
            agent = agent_at(place)
            model = None if agent is None else _model(agent, entry.model_id)
            if (model is not None and _is_settled(model, entry)) or time.monotonic() > end:
                break
            state = "" if model is None else f" ({model.get('state')})"
            progress.say(f"waiting for the agent to take up {entry.model_id}{state}")
            time.sleep(_PAUSE_S)
    if agent is None or model is None:
        why = "does not answer" if agent is None else "does not know it yet"
        msg = f"the agent {why}; what was written stays: {told['file']}"
        raise Failed(msg)
    fit = _fit(agent, entry.model_id)
    if not args.json and fit:
        output.put(f"{entry.model_id}: {fit}")
    if not model.get("usable"):
        msg = (
            f"{entry.model_id} is added ({told['file']}), but cannot be used now: "
            f"{model.get('reason')}. It is looked at again by itself; `rolemeshctl model remove "
            f"{entry.model_id}` takes it away"
        )
        raise Failed(msg)
    return agent, fit


def _is_settled(model: Mapping[str, Any], entry: ModelEntry) -> bool:
    """Tell whether the agent has looked at the file and, if the model is pinned, loaded it."""
    if not model.get("usable"):
        return True
    is_known = model.get("file_mib") is not None
    return is_known and (entry.pin is None or model.get("state") == "ready")


def _model(agent: Agent, model_id: str) -> Mapping[str, Any] | None:
    models = (each for each in agent.node.get("models", []) if each.get("model_id") == model_id)
    return next(models, None)


def _fit(agent: Agent, model_id: str) -> str:
    try:
        plans = agent.get("plan", has="plans", model=model_id)["plans"]
    except CtlError:
        return ""
    return fit_text(plans[0], agent.node) if plans else ""


def _put_added(entry: ModelEntry, agent: Agent, settings: NodeSettings, file: str) -> None:
    roles = " and ".join(entry.roles)
    output.put(f"{entry.model_id} serves {roles} on {agent.node_id}: {file}")
    if not settings.gateways:
        output.note(
            "This node reports to no gateway yet: `sudo rolemeshctl gateway invite` on a gateway's "
            "host prints what to type here."
        )
        return
    with output.Progress() as progress:
        progress.say("asking the gateways")
        notes = unanswered(settings, agent.node_id, entry.model_id, entry.roles)
    for note in notes:
        output.note(note)
    url = settings.gateways[0].url
    path, body = _example(entry)
    output.note("Ask it, with the key of a client:")
    output.put(f"curl {quote(f'{url}/v1/{path}')} -H 'Authorization: Bearer KEY' \\")
    output.put(f"    -d {quote(json.dumps(body))}")


def _example(entry: ModelEntry) -> tuple[str, dict[str, Any]]:
    """Return a path and a request that the model answers there."""
    role = entry.roles[0]
    if entry.rerank:
        return "rerank", {"model": role, "query": "Hello", "documents": ["Good day", "Good night"]}
    if entry.embeddings:
        return "embeddings", {"model": role, "input": "Hello"}
    return "chat/completions", {
        "model": role,
        "messages": [{"role": "user", "content": "Hello"}],
    }
