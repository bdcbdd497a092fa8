"""Where an agent of this host has its files, by its name; and its unit: running? reload, restart, status."""

import argparse
import math
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rolemesh.config.dropins import ConfigSource
from rolemesh.ctl.outcomes import BadUsage

ETC: Final = Path("/etc/rolemesh")
RUN: Final = Path("/run/rolemesh")
UNIT: Final = "rolemesh-node-agent"
GROUP: Final = "_rolemesh-llama"
"""Reads the configuration: the llama-servers' group, to which the agent belongs."""

KEY_GROUP: Final = "_rolemesh-agent"
"""Reads keys: the agent alone."""

_BOOTED: Final = Path("/run/systemd/system")
"""Is there where systemd is PID 1 (sd_booted(3))."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_TAKE_UP_TIMEOUT_S: Final = 120.0
_TIMEOUT_S: Final = 10.0
_LINES: Final = "8"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPlace:
    """One agent of this host: `name` is "" for the first; `unit` for one that systemd runs."""

    name: str = ""
    directory: Path
    unit: str = ""
    sockets: tuple[Path, ...]

    @property
    def source(self) -> ConfigSource:
        """Its configuration: of the first agent also what is elsewhere than in /etc."""
        is_first = self.unit and not self.name
        return ConfigSource(program="node", config_dir=None if is_first else self.directory)

    @property
    def key_file(self) -> Path:
        """Where the key is kept that it shows to the gateway it joined."""
        return self.directory.with_suffix(".key")

    def is_running(self) -> bool:
        """Tell whether systemd runs it."""
        return bool(self.unit) and _systemctl("is-active", "--quiet", self.unit) is None

    def take_up(self, *, restarts: bool) -> str:
        """Have it read its configuration, if it runs; returns why it does not, "" when it does.

        `restarts`: something changed that a reload does not change; its llama-servers go on.
        """
        if not self.is_running():
            return ""
        # The reload checks as the agent's user: what that cannot use must not end the agent.
        for verb in ("reload", "restart") if restarts else ("reload",):
            failed = _systemctl(verb, self.unit, timeout_s=_TAKE_UP_TIMEOUT_S)
            if failed is not None:
                return self._last_words() or failed
        return ""

    def start(self) -> None:
        """Start it, if it does not run."""
        _ = _systemctl("start", self.unit, timeout_s=_TAKE_UP_TIMEOUT_S)

    def status(self) -> str:
        """Return what it says of itself, "" when nothing."""
        return _output("systemctl", "show", "--property=StatusText", "--value", self.unit)

    def _last_words(self) -> str:
        return _output(
            "journalctl", "--quiet", f"--unit={self.unit}", f"--lines={_LINES}", "--output=cat"
        )


def add_agent_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which agent of this host is meant."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--agent", metavar="NAME", help="of rolemesh-node-agent@NAME.service")
    which.add_argument(
        "--directory", metavar="DIR", type=Path, help="of an agent with --config-dir DIR"
    )


def add_wait_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --wait; `what` is waited for."""
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=_seconds,
        default=60.0,
        help=f"how long {what} (default: 60)",
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        msg = f"expected a number of seconds, found {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return seconds


def agent_place(
    name: str | None, directory: Path | None, environ: Mapping[str, str] = os.environ
) -> AgentPlace:
    """Return the place of the agent that is meant; raises BadUsage for a name that is none.

    `directory`: of one that somebody runs with --config-dir.
    """
    user = environ.get("XDG_RUNTIME_DIR", "")
    own = (Path(user, "rolemesh", "node", "control.sock"),) if user else ()
    if directory is not None:
        return AgentPlace(directory=directory.absolute(), sockets=own)
    if name is None:
        return AgentPlace(
            directory=ETC / "node.d", unit=f"{UNIT}.service", sockets=(RUN / "node/control.sock",)
        )
    if not _NAME.fullmatch(name):
        msg = f"{name!r} is not an agent's name: at most 32 small letters, digits and -"
        raise BadUsage(msg)
    return AgentPlace(
        name=name,
        directory=ETC / f"node-{name}.d",
        unit=f"{UNIT}@{name}.service",
        sockets=(RUN / f"node-{name}/control.sock",),
    )


def other_directories(place: AgentPlace) -> tuple[Path, ...]:
    """Return the directories of the other agents of this host."""
    found = place.directory.parent.glob("node*.d")
    return tuple(sorted(each for each in found if each != place.directory))


def _systemctl(*words: str, timeout_s: float = _TIMEOUT_S) -> str | None:
    """Return None when it was done, else what was said."""
    if not _BOOTED.is_dir():
        return "systemd does not run here"
    done = _run(("systemctl", "--no-ask-password", *words), timeout_s)
    if done is None:
        return "systemctl did not answer"
    return None if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"


def _output(*command: str) -> str:
    """Return what a command prints, "" when it cannot be run."""
    done = _run(command, _TIMEOUT_S)
    return "" if done is None else done.stdout.strip()


def _run(command: tuple[str, ...], timeout_s: float) -> subprocess.CompletedProcess[str] | None:
    """Return how a command ended, None when it could not be run or did not end."""
    try:
        return subprocess.run(  # noqa: S603 - the words are ours
            command, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
