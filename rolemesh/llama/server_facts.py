"""What rolemesh-llama says of the llama-server it runs: server.json in its runtime directory.

{"format": 1, "version", "server_pid", "model_id", "generation", "args_hash", "build",
"settings_hash"}; `version` is rolemesh-llama's own, `build` the llama-server's. The file is there while the process is.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rolemesh import jsonread
from rolemesh.llama.file_access import open_regular
from rolemesh.names import ModelId
from rolemesh.runtime.state import replace_file

FILE_NAME: Final = "server.json"
MAX_BYTES: Final = 16 * 1024
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """One llama-server. `generation` is that of the parameters it was started with, 0: none.

    `args_hash` changes with whatever determines how it behaves; `build` is "" where it would not
    say. `settings_hash` is that of the settings it was started with, "" from an older program.
    """

    version: str
    server_pid: int
    model_id: ModelId
    generation: int
    args_hash: str
    build: str
    settings_hash: str = ""


def write_facts(path: Path, facts: ServerFacts) -> None:
    """Replace the file, for the owner and the group to read; raises OSError."""
    content = json.dumps({"format": _FORMAT, **asdict(facts)}).encode()
    replace_file(path, content, mode=0o640, durable=False)


def read_facts(path: Path) -> ServerFacts | None:
    """Return what the file says; None when there is none that can be used."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            return None
        fields = jsonread.as_object(json.loads(content))
        if fields.get("format") != _FORMAT:
            return None
        return ServerFacts(
            version=jsonread.get_str(fields, "version"),
            server_pid=jsonread.get_int(fields, "server_pid"),
            model_id=ModelId(jsonread.get_str(fields, "model_id")),
            generation=jsonread.get_int(fields, "generation"),
            args_hash=jsonread.get_str(fields, "args_hash"),
            build=jsonread.get_str(fields, "build"),
            settings_hash=jsonread.get_str(fields, "settings_hash", ""),
        )
    except (OSError, ValueError, RecursionError):
        return None
