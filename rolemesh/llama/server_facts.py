"""What rolemesh-llama says of the llama-server it runs: server.json in its runtime directory.

{"format": 1, "version", "server_pid", "model_id", "generation", "args_hash", "build",
"settings_hash", "program", "signature"}; `version` is rolemesh-llama's own, `build` the
llama-server's. The file is there while the process is.

Format 1 only ever gets more keys, which readers ignore that do not know them. In every format
`format` is a number and `version` a string.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rolemesh import jsonread
from rolemesh.llama.file_access import open_regular
from rolemesh.names import ModelId
from rolemesh.runtime.state import replace_file

FILE_NAME: Final = "server.json"
MAX_BYTES: Final = 16 * 1024
FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """One llama-server. `generation` is that of the parameters it was started with, 0: none.

    `args_hash` changes with whatever determines how it behaves; `build` is "" where it would not
    say. `settings_hash` is that of the settings it was started with. `program` is the file that was
    executed, `signature` what changes with it, see build.file_signature. These three are empty from
    an older program.
    """

    version: str
    server_pid: int
    model_id: ModelId
    generation: int
    args_hash: str
    build: str
    settings_hash: str = ""
    program: str = ""
    signature: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NoFacts:
    """Why nothing is known; `version` is that of the rolemesh-llama, "" where it does not tell."""

    reason: str
    version: str = ""


def write_facts(path: Path, facts: ServerFacts) -> None:
    """Replace the file, for the owner and the group to read; raises OSError."""
    content = json.dumps({"format": FORMAT, **asdict(facts)}).encode()
    replace_file(path, content, mode=0o640, durable=False)


def read_facts(path: Path) -> ServerFacts | NoFacts:
    """Return what the file says, or why that cannot be used; never raises."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            return NoFacts(reason=f"{path} is larger than {MAX_BYTES} bytes")
        return _facts(path, jsonread.as_object(json.loads(content)))
    except FileNotFoundError:
        why = "its rolemesh-llama is older than that file, or could not write it"
        return NoFacts(reason=f"there is no {path}: {why}")
    except OSError as err:
        return NoFacts(reason=f"{path} cannot be read: {err.strerror}")
    except (ValueError, RecursionError) as err:
        return NoFacts(reason=f"{path} makes no sense: {err}")


def _facts(path: Path, fields: Mapping[str, Any]) -> ServerFacts | NoFacts:
    """Return the facts in an object; raises JsonError."""
    version = jsonread.get_str(fields, "version", "")
    found = jsonread.get_int(fields, "format")
    if found != FORMAT:
        reason = f"{path} has format {found}, and this program knows format {FORMAT}"
        return NoFacts(reason=reason, version=version)
    return ServerFacts(
        version=jsonread.get_str(fields, "version"),
        server_pid=jsonread.get_int(fields, "server_pid"),
        model_id=ModelId(jsonread.get_str(fields, "model_id")),
        generation=jsonread.get_int(fields, "generation"),
        args_hash=jsonread.get_str(fields, "args_hash"),
        build=jsonread.get_str(fields, "build"),
        settings_hash=jsonread.get_str(fields, "settings_hash", ""),
        program=jsonread.get_str(fields, "program", ""),
        signature=_signature(fields.get("signature")),
    )


def _signature(value: Any) -> tuple[int, ...]:
    is_one = isinstance(value, list) and all(type(each) is int for each in value)
    return tuple(value) if is_one else ()
