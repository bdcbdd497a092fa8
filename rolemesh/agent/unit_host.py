"""Who runs the units of the instances: systemd, or this process where systemd does not."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rolemesh.agent.child_supervisor import ChildSupervisor, rolemesh_llama_argv
from rolemesh.agent.instance_files import InstanceFiles, runtime_directory
from rolemesh.agent.systemd_units import TEMPLATE, SystemdUnits
from rolemesh.config.cli import source_arguments
from rolemesh.config.dropins import ConfigSource
from rolemesh.errors import ConfigError, Problem
from rolemesh.llama.node_directory import agent_name
from rolemesh.names import NodeId

logger = logging.getLogger(__name__)

CHOICE_VARIABLE: Final = "ROLEMESH_UNIT_CONTROL"

BOOTED: Final = Path("/run/systemd/system")
"""There when systemd is PID 1 (sd_booted(3))."""

UNIT_PATH: Final = tuple(
    Path(root) / "systemd" / "system"
    for root in ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib")
)
"""Where systemd looks for units (systemd.unit(5))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitHost:
    """What runs the instances, and where their files then are."""

    control: ChildSupervisor | SystemdUnits
    files: InstanceFiles


def systemd_hosts_units(
    environ: Mapping[str, str] = os.environ,
    *,
    booted: Path = BOOTED,
    unit_path: Sequence[Path] = UNIT_PATH,
) -> bool:
    """Tell whether systemd shall run the units: where it is PID 1 and knows their template.

    $ROLEMESH_UNIT_CONTROL decides otherwise; raises ConfigError when it says neither "systemd" nor
    "child".
    """
    match environ.get(CHOICE_VARIABLE, ""):
        case "systemd":
            return True
        case "child":
            return False
        case "":
            return booted.is_dir() and any((each / TEMPLATE).is_file() for each in unit_path)
        case other:
            message = f'expected "systemd", "child" or nothing, found "{other}"'
            raise ConfigError((Problem(where=CHOICE_VARIABLE, key="", message=message),))


def choose_unit_host(*, node_id: NodeId, state_directory: Path, source: ConfigSource) -> UnitHost:
    """Return who runs the units; `source` is what this agent's own options name."""
    config_args = source_arguments(source)
    if systemd_hosts_units():
        name = "" if source.config_dir is None else agent_name(source.config_dir)
        if name is None or source.config is not None or source.override is not None:
            logger.warning(
                "systemd runs %s without %s: give it the same by $ROLEMESH_LLAMA_OPTIONS in a "
                "drop-in of that unit",
                *(TEMPLATE, " ".join(config_args)),
            )
        return UnitHost(control=SystemdUnits(), files=InstanceFiles.of_systemd(name or ""))
    files = InstanceFiles.below(runtime_directory(node_id, state_directory))
    supervisor = ChildSupervisor(
        directory=files.sockets,
        argv_of=lambda instance: rolemesh_llama_argv(
            instance, parameters=files.parameters_file(instance), config_args=config_args
        ),
    )
    return UnitHost(control=supervisor, files=files)
