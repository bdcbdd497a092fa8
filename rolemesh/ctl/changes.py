"""A change of a daemon's configuration files, by whoever may: judged before, taken back if refused."""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from rolemesh.config.dropins import ConfigSource, read_fragments
from rolemesh.config.load import Loaded, load_node
from rolemesh.config.merge import SHAPES, merge
from rolemesh.config.settings import NodeSettings
from rolemesh.config.tree import Node, Program
from rolemesh.ctl import output, own_files
from rolemesh.ctl.agent_place import ETC, GROUP, AgentPlace
from rolemesh.ctl.config import daemon_environment
from rolemesh.ctl.outcomes import BadConfig, Failed
from rolemesh.ctl.reload import put_problems
from rolemesh.ctl.staging import Load, SettingsT, judge
from rolemesh.errors import ConfigError, Problem

PACKAGES: Final[dict[Program, str]] = {"gateway": "rolemesh-gateway", "node": "rolemesh-node-agent"}

_REMEDIES: Final = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EROFS: "what is there is read-only",
}
ResultT = TypeVar("ResultT")


def merged(source: ConfigSource) -> Node:
    """Return the tree of the files as they are; raises BadConfig when one cannot be read."""
    reading = read_fragments(source)
    refuse([found.problem() for found in reading.findings if not found.is_warning])
    return merge(reading.fragments, SHAPES[source.program]).root


def loaded(source: ConfigSource, load: Load[SettingsT]) -> Loaded[SettingsT]:
    """Return what the files as they are say; raises BadConfig."""
    try:
        return load(source, daemon_environment(source))
    except ConfigError as error:
        put_problems(error.problems)
        msg = "this configuration is refused: mend it first; nothing was changed"
        raise BadConfig(msg) from error


def loaded_with(
    source: ConfigSource, file: Path, text: str | None, load: Load[SettingsT]
) -> Loaded[SettingsT]:
    """Return what would be in force with `text` in `file` (None: without it); raises BadConfig."""
    try:
        return judge(source, file, text, load)
    except ConfigError as error:
        put_problems(error.problems)
        raise _refused() from error


def loader(place: AgentPlace) -> Load[NodeSettings]:
    """Return what reads an agent's files: without keys while its unit, and its credentials, rest."""
    rests = place.unit and not place.is_running()
    return partial(load_node, reads_keys=False) if rests else load_node


def refuse(problems: Iterable[Problem]) -> None:
    """Print problems and raise BadConfig, if there are any."""
    listed = tuple(problems)
    if listed:
        put_problems(listed)
        raise _refused()


def _refused() -> BadConfig:
    return BadConfig("the configuration would be refused: nothing was changed")


def require_writable(directory: Path, program: Program) -> None:
    """Raise Failed, with the remedy, unless the caller may change `directory`."""
    if os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        return
    try:
        directory.stat()
    except FileNotFoundError as error:
        msg = f"there is no directory {directory}: {_remedy(directory, program)}"
        raise Failed(msg) from error
    except OSError:
        pass  # it may be there
    else:
        if os.statvfs(directory).f_flag & os.ST_RDONLY:
            msg = f"{directory} cannot be written: {_REMEDIES[errno.EROFS]}"
            raise Failed(msg)
    msg = f"you may not change {directory}: use sudo, or --directory"
    raise Failed(msg)


def _remedy(directory: Path, program: Program) -> str:
    named = re.fullmatch(r"node-(.+)\.d", directory.name)
    if named is not None and directory.parent == ETC:
        return f"there is no agent {named[1]}; `rolemeshctl node join --agent {named[1]}` makes it"
    return f"is {PACKAGES[program]} installed on this host?"


def guarded(file: Path, change: Callable[[], ResultT]) -> ResultT:
    """Carry out a change of `file`; raises Failed where the system refuses it."""
    try:
        return change()
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "use sudo, or --directory")
        msg = f"{file} cannot be written: {error.strerror}; {remedy}"
        raise Failed(msg) from error


def put_file(
    place: AgentPlace, file: Path, text: str | None, *, old: str | None, restarts: bool = False
) -> None:
    """Write a file of an agent's (None: remove it) and have that take it up if it runs.

    `old` is what was there; it is put back, and Failed raised, when the agent refuses. None: nothing
    was, and a file that is there by now is left alone. `restarts`: a reload would not do.
    """
    guarded(file, lambda: _put(file, text, is_new=old is None))
    with contextlib.ExitStack() as undo:
        # Also for whoever does not wait (Ctrl-C): half of a change may be refused at the next start.
        undo.callback(guarded, file, lambda: _put(file, old, is_new=text is None))
        failed = place.take_up(restarts=restarts)
        if not failed:
            undo.pop_all()
            return
    if restarts:
        place.start()
    output.note(failed)
    msg = f"{place.unit} refuses its new configuration: nothing was changed"
    raise Failed(msg)


def _put(file: Path, text: str | None, *, is_new: bool) -> None:
    if text is not None:
        own_files.write(file, text, group=GROUP, is_new=is_new)
    elif file.exists():
        own_files.remove(file)
