"""`rolemeshctl model remove`: takes away what `model add` wrote, and nothing else."""

import argparse
from pathlib import Path

from rolemesh.config import tree
from rolemesh.ctl import model_files, output
from rolemesh.ctl.agent_place import AgentPlace, agent_place
from rolemesh.ctl.changes import loaded_with, loader, merged, put_file, require_writable
from rolemesh.ctl.outcomes import EXIT_OK, Failed, NotThere


def run(args: argparse.Namespace) -> int:
    """Remove the model's drop-in, and have the agent reload."""
    place = agent_place(args.agent, args.directory)
    require_writable(place.directory, "node")
    file, text = _own(args.model, place)
    _ = loaded_with(place.source, file, None, loader(place))
    put_file(place, file, None, old=text)
    if args.json:
        output.put_json({"model_id": args.model, "file": str(file)})
    else:
        output.put(f"{args.model} removed: {file}; its weights stay where they are")
    return EXIT_OK


def _own(model_id: str, place: AgentPlace) -> tuple[Path, str]:
    """Return the file of a model that we wrote, and what is in it."""
    known = tree.find(merged(place.source), ("models", model_id))
    if known is None:
        msg = f"there is no model {model_id}; `rolemeshctl model list` lists them"
        raise NotThere(msg)
    file = Path(known.origin.source)
    text = file.read_text(encoding="utf-8")
    entry = model_files.parse(text)
    if entry is None or entry.model_id != model_id or file.parent != place.directory:
        msg = (
            f"{model_id} stands at {known.origin}, which `model add` did not write, or which was "
            "edited: remove it there"
        )
        raise Failed(msg)
    return file, text
