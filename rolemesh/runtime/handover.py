"""Handing a running daemon over to another version of its program: what is decided, without I/O.

`successor` is the side of the process that hands over, `predecessor` that of the one it starts. They
speak by a `message_channel`:

    old -> new   inherit      its output, the listening sockets, and locks
    new -> old   prepared     the configuration is accepted, the addresses are bound; or `refused`
    old -> new   proceed      the state files are written, and the new one's; what is under way
    old -> new   told         the same anew, whenever less is, up to the end
    new -> old   accepting    from here on both answer
    old -> new   yours        the manager has been told
    new -> old   reload       the configuration is another one
    old -> new   reloaded     requests there follow it, as far as it concerns them
    new -> old   stop         the daemon as a whole stops: requests have so long to end

The channel stays open until the old process has ended; its end tells that. Where the old one has
itself taken over from another one that still ends, it ends after that, and passes on what is said.
The two are of different versions: a field that is not known is ignored, none may be taken away.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rolemesh.errors import ConfigError, Problem, RoleMeshError, StartError

VARIABLE: Final = "ROLEMESH_HANDOVER"
"""The environment variable in which a new process finds the number of its end of the channel."""

START_S: Final = 20.0
"""How long a new program may take from its start until it accepts."""

MAX_PROBLEMS: Final = 50
MAX_TEXT: Final = 2000

_PLACE: Final = re.compile(r'File "([^"]+)", line (\d+)')
_OWN_PID: Final = "SYSTEMD_EXEC_PID"
_NOT_PASSED_ON: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", VARIABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIdentity:
    """What tells a file from the one that was in its place before: a replaced one has another ctime.

    Times are in nanoseconds.
    """

    device: int
    inode: int
    size: int
    mtime: int
    ctime: int


def is_replaced(loaded: FileIdentity | None, found: FileIdentity | None) -> bool:
    """Tell whether a program was replaced since it was loaded.

    One that cannot be found was removed, or is being replaced: there is nothing to hand over to.
    """
    return None not in (loaded, found) and loaded != found


def obstacle(environment: Mapping[str, str], pid: int) -> str:
    """Return why nobody can take over from process `pid`, "" when somebody can.

    Only systemd follows a daemon to another process (MAINPID= of sd_notify(3)). To anybody else, a
    shell or a container, the daemon ends with its first process. What systemd itself has executed it
    tells so (SYSTEMD_EXEC_PID, systemd.exec(5)).
    """
    if environment.get(_OWN_PID) != str(pid):
        return "it was not started by systemd"
    if not environment.get("NOTIFY_SOCKET"):
        return "its unit is not of Type=notify"
    return ""


def successor_command(
    argv: Sequence[str], original: Sequence[str], executable: str, *, is_program: bool
) -> list[str]:
    """Return what starts the program anew, as the service manager would.

    `argv` and `original` are sys.argv and sys.orig_argv, `is_program` whether argv[0] can be executed:
    then its first line names the interpreter, which may be another one by now.
    """
    return list(argv) if is_program else [executable, *original[1:]]


def successor_environment(at_start: Mapping[str, str], fd: int) -> dict[str, str]:
    """Return the environment for the new process: this one's own at its start, and the channel."""
    kept = {name: value for name, value in at_start.items() if name not in _NOT_PASSED_ON}
    return {**kept, VARIABLE: str(fd)}


def why_it_ended(output: str) -> str:
    """Return the reason in what a program wrote before its end: of a traceback, what and where."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if not lines:
        return "it ended without a word"
    places = [found for line in lines if (found := _PLACE.match(line))]
    where = f" ({places[-1][1]}:{places[-1][2]})" if places else ""
    return lines[-1][:MAX_TEXT] + where


# -- a refusal, on its way to the process that goes on -------------------------------------------


def refusal_fields(error: BaseException) -> dict[str, Any]:
    """Return an error as it is told, of several the first; what is too long for a message is cut."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ConfigError):
        problems = [
            {"where": each.where, "key": each.key, "message": each.message[:MAX_TEXT]}
            for each in error.problems[:MAX_PROBLEMS]
        ]
        return {"problems": problems}
    if isinstance(error, RoleMeshError):
        return {"reason": str(error)[:MAX_TEXT]}
    return {"reason": f"{type(error).__name__}: {error}"[:MAX_TEXT]}


def refusal_error(fields: Mapping[str, Any]) -> RoleMeshError:
    """Return the error that was told."""
    problems = [
        Problem(**{name: str(each.get(name, "")) for name in ("where", "key", "message")})
        for each in fields.get("problems", ())
    ]
    if problems:
        return ConfigError(tuple(problems))
    return not_taken_over(str(fields.get("reason", "no reason given")))


def not_taken_over(reason: str) -> StartError:
    """Return the error for a new program that does not come up."""
    return StartError(f"the new program does not come up, this one serves on: {reason}")
