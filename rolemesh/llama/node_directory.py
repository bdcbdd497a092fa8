"""Which configuration an instance has: several agents on one host have a directory each.

/etc/rolemesh/node.d is the first agent's, node-NAME.d that of rolemesh-node-agent@NAME. An option
or a variable that names a configuration decides; else what the agent says; else the one directory
whose `instances` name this instance; else node.d.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import load_node
from rolemesh.config.settings import NodeSettings
from rolemesh.errors import ConfigError, Problem
from rolemesh.llama.parameters import Parameters
from rolemesh.names import InstanceName

ETC: Final = Path("/etc/rolemesh")
_NAMED: Final = re.compile(r"node-([a-z0-9][a-z0-9-]{0,31})\.d")


def load_settings(
    source: ConfigSource,
    instance: InstanceName,
    parameters: Parameters | None,
    *,
    in_unit: bool,
    etc: Path = ETC,
) -> NodeSettings:
    """Return the settings that the instance runs by; raises ConfigError.

    `source` is what options and environment say. `in_unit`: this process is a systemd service,
    and takes nothing from a directory that others than root can write.
    """
    if source.config is None and source.config_dir is None:
        if parameters is None:
            return _search(source, instance, etc, in_unit=in_unit)
        source = _named(source, parameters.config, etc)
        if in_unit:
            _require_roots(source)
    return _load(source)


def agent_name(directory: Path, etc: Path = ETC) -> str | None:
    """Return the name of the agent whose directory it is, "" for the first agent's; else None."""
    if directory == etc / "node.d":
        return ""
    match = _NAMED.fullmatch(directory.name)
    return match[1] if match is not None and directory.parent == etc else None


def _load(source: ConfigSource) -> NodeSettings:
    return load_node(source, reads_keys=False).settings


def _named(source: ConfigSource, name: str, etc: Path) -> ConfigSource:
    return replace(source, config_dir=etc / f"node-{name}.d") if name else source


def _search(
    source: ConfigSource, instance: InstanceName, etc: Path, *, in_unit: bool
) -> NodeSettings:
    """Return the settings that name the instance; the first agent's where none do."""
    candidates = [_named(source, name, etc) for name in ("", *_agent_names(etc))]
    if in_unit:
        for candidate in candidates:
            _require_roots(candidate)
    return _load(source) if len(candidates) == 1 else _choose(candidates, instance)


def _choose(candidates: list[ConfigSource], instance: InstanceName) -> NodeSettings:
    loaded: dict[str, NodeSettings] = {}
    refusals: list[Problem] = []
    for candidate in candidates:
        try:
            loaded[str(candidate.directories[-1])] = _load(candidate)
        except ConfigError as err:
            refusals += err.problems
    named = {place: each for place, each in loaded.items() if instance in each.instances}
    if len(named) > 1:
        message = f"configured in {' and in '.join(named)}; expected it in one of them"
        raise ConfigError((Problem(where="", key=f"instances.{instance}", message=message),))
    if not named and refusals:
        # Which of them has the instance cannot be told.
        raise ConfigError(tuple(refusals))
    return next(iter((named or loaded).values()))


def _agent_names(etc: Path) -> Iterator[str]:
    try:
        names = sorted(path.name for path in etc.iterdir())
    except OSError:
        return
    for name in names:
        match = _NAMED.fullmatch(name)
        if match is not None:
            yield match[1]


def _require_roots(source: ConfigSource) -> None:
    """Refuse a directory that decides what is executed and that others than root can write."""
    problems = []
    for directory in source.directories:
        try:
            found = directory.stat()
        except OSError:
            # Reading it says why.
            continue
        fault = _fault(found)
        if fault:
            message = f"{fault}: what llama-server runs is read from here; {_REMEDY}"
            problems.append(Problem(where=str(directory), key="", message=message))
    if problems:
        raise ConfigError(tuple(problems))


_REMEDY: Final = "chown it to root, and chmod go-w"


def _fault(found: os.stat_result) -> str:
    if found.st_uid != 0:
        return f"belongs to uid {found.st_uid}, expected root"
    # The agent is in this process's group.
    ours = found.st_gid in {os.getegid(), *os.getgroups()}
    if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and ours):
        return "can be written by others than root"
    return ""
