"""Writes the node configuration that a test's instances run with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_node_config(
    folder: Path,
    *,
    program: Path | str | None,
    models: Mapping[str, Mapping[str, Any]],
    args: tuple[str, ...] = (),
    runs: Mapping[str, str] | None = None,
    policy: Mapping[str, Any] | None = None,
) -> Path:
    """Return a configuration file with these models; `runs`: instance -> model_id."""
    path = folder / "node.yaml"
    server = {"path": str(program)} if program is not None else {}
    tree = {
        "node_id": "box",
        "llama_server": {**server, "args": list(args)},
        "models": [
            {"model_id": name, "roles": ["coder"], **fields, "path": str(fields["path"])}
            for name, fields in models.items()
        ],
        "instances": {name: {"model": model} for name, model in (runs or {}).items()},
        "policy": dict(policy or {}),
    }
    # One key a line: messages name lines. JSON is YAML.
    path.write_text(json.dumps(tree, indent=1))
    return path
