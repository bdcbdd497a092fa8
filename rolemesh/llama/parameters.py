"""What the agent tells an instance to run: {"model_id", "devices", "generation", "config"}.

The file crosses a trust boundary (the agent writes it, this program executes things), so it is
read bounded and strictly, and it never says what is executed: `config` only chooses among the
directories of configuration that root owns.

This is format 1, which needs no key `format`. A key that is not known is refused by whoever acts
upon the file, because leaving it out could run something on the wrong devices; the agent, which
only wants to know what runs, ignores it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rolemesh import jsonread
from rolemesh.errors import ConfigError, Problem
from rolemesh.llama.command import UUID_PREFIXES
from rolemesh.llama.file_access import NotRegular, open_regular
from rolemesh.names import ModelId

MAX_BYTES: Final = 64 * 1024
FORMAT: Final = 1
_KEYS: Final = frozenset({"format", "model_id", "devices", "generation", "config"})
# A UUID of a GPU or of a MIG slice, or a name as of `llama-server --list-devices`; no comma, so
# that one device stays one.
_DEVICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9/:._\[\]-]{0,127}")
_CONFIG: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Which model on which devices; `generation` grows with each change of the file.

    `devices` are UUIDs of GPUs, or names as of `llama-server --list-devices`. `config` NAME: the
    configuration is that of the agent NAME, in node-NAME.d; "": that of the first, in node.d.
    """

    model_id: ModelId
    devices: tuple[str, ...]
    generation: int
    config: str = ""


def read_parameters(path: Path) -> Parameters | None:
    """Return what the file says, None when it does not exist; raises ConfigError otherwise."""
    try:
        fields = _object(_read_bounded(path))
        _require_known(fields)
        return _parse(fields)
    except FileNotFoundError:
        return None
    except NotRegular as err:
        raise _refused(path, f"{err.strerror}, not a file that the agent wrote") from err
    except OSError as err:
        raise _refused(path, f"cannot be read: {err.strerror}") from err
    except ValueError as err:
        raise _refused(path, f"{err}; remove the file, or have the agent write it anew") from err


def peek_parameters(path: Path) -> Parameters | None:
    """Return what an instance was told, as far as this program knows it; None if that is nothing."""
    try:
        fields = _object(_read_bounded(path))
        return _parse(fields) if _format(fields) == FORMAT else None
    except (OSError, ValueError):
        return None


def _read_bounded(path: Path) -> bytes:
    with open_regular(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        msg = f"is larger than {MAX_BYTES} bytes"
        raise ValueError(msg)
    return content


def _object(content: bytes) -> Mapping[str, Any]:
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as err:
        msg = f"is not JSON: {err}"
        raise ValueError(msg) from err
    return jsonread.as_object(tree)


def _require_known(fields: Mapping[str, Any]) -> None:
    if _format(fields) != FORMAT:
        msg = f"format: this rolemesh-llama knows format {FORMAT}, found {fields['format']!r}"
        raise ValueError(msg)
    unknown = sorted(fields.keys() - _KEYS)
    if unknown:
        msg = f"{unknown[0]}: unknown key (known: {', '.join(sorted(_KEYS))})"
        raise ValueError(msg)


def _format(fields: Mapping[str, Any]) -> Any:
    return fields.get("format", FORMAT)


def _parse(fields: Mapping[str, Any]) -> Parameters:
    return Parameters(
        model_id=ModelId(jsonread.get_str(fields, "model_id")),
        devices=_devices(fields),
        generation=jsonread.get_optional_int(fields, "generation") or 0,
        config=_config(fields),
    )


def _config(fields: Mapping[str, Any]) -> str:
    name = jsonread.get_optional_str(fields, "config") or ""
    if name and not _CONFIG.fullmatch(name):
        msg = f"config: expected the name of an agent (a-z, 0-9, -), found {name!r}"
        raise ValueError(msg)
    return name


def _devices(fields: Mapping[str, Any]) -> tuple[str, ...]:
    devices = jsonread.get_strings(fields, "devices")
    for device in devices:
        if not _DEVICE.fullmatch(device):
            msg = f"devices: expected UUIDs of GPUs or names of devices, found {device!r}"
            raise ValueError(msg)
    if len({device.startswith(UUID_PREFIXES) for device in devices}) > 1:
        msg = "devices: expected either UUIDs of GPUs or names of devices, found both"
        raise ValueError(msg)
    return devices


def _refused(path: Path, message: str) -> ConfigError:
    return ConfigError((Problem(where=str(path), key="", message=message),))
