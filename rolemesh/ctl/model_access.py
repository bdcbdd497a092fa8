"""Whether the services of this host can read a model file: their users, and their sandboxes."""

import os
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rolemesh.llama.file_access import hidden_directory

MODELS: Final = Path("/var/lib/rolemesh/models")
LLAMA_UNIT: Final = "rolemesh-llama@{}.service"

_PROPERTIES: Final = (
    "User", "Group", "SupplementaryGroups", "ProtectHome", "PrivateTmp", "BindPaths",
    "BindReadOnlyPaths",
)  # fmt: skip
_HIDDEN_BY: Final = {"ProtectHome": ("yes", "tmpfs"), "PrivateTmp": ("yes", "disconnected")}
_TIMEOUT_S: Final = 10.0
_ROOT: Final = 0

# Prints the first of its arguments that is not allowed: x: to be passed, r: to be read.
_TRY: Final = """\
for each; do
    case $each in
        x:*) [ -x "${each#x:}" ] ;;
        r:*) [ -r "${each#r:}" ] ;;
    esac || { printf %s "$each"; exit 1; }
done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What of a unit's settings decides which files it sees."""

    unit: str
    settings: Mapping[str, str]

    @property
    def user(self) -> str:
        """Whom it acts as."""
        return self.settings.get("User") or "root"

    def hides(self, path: Path) -> str:
        """Return the setting that would show it a file it cannot see, "" when it sees it."""
        hidden = hidden_directory(path)
        if hidden is None or self._has_bound(path):
            return ""
        remedy = hidden[1]
        name = remedy.partition("=")[0]
        return remedy if self.settings.get(name) in _HIDDEN_BY[name] else ""

    def _has_bound(self, path: Path) -> bool:
        bound = " ".join(self.settings.get(name, "") for name in _PROPERTIES[-2:])
        # SOURCE:DESTINATION:OPTIONS (systemd.exec(5)).
        return any(path.is_relative_to(each.split(":")[1]) for each in bound.split() if ":" in each)

    def barrier(self, paths: Iterable[Path]) -> str:
        """Return the first thing on the way to files that its user may not pass or read, "" none.

        Only root can find that out; for anybody else it is "".
        """
        if os.geteuid() != _ROOT or self.user == "root":
            return ""
        steps = dict.fromkeys(step for path in paths for step in _steps(path))
        try:
            done = subprocess.run(  # noqa: S603 - paths are arguments, not words of a shell
                ["/bin/sh", "-c", _TRY, "sh", *steps],
                user=self.user,
                group=self.settings.get("Group") or self.user,
                extra_groups=self.settings.get("SupplementaryGroups", "").split(),
                capture_output=True,
                text=True,
                check=False,
                timeout=_TIMEOUT_S,
            )
        except (OSError, KeyError, ValueError, subprocess.SubprocessError):
            return ""  # there is no such user or group: its own start says so
        return done.stdout


def _steps(path: Path) -> Iterator[str]:
    real = path.resolve()
    for each in (path, real):
        yield from (f"x:{parent}" for parent in reversed(each.parents))
    yield f"r:{real}"


def find_service(unit: str) -> Service | None:
    """Return what systemd knows of a unit, drop-ins included; None where it does not."""
    wanted = [f"--property={name}" for name in ("LoadState", *_PROPERTIES)]
    try:
        done = subprocess.run(  # noqa: S603 - the words are ours
            ["systemctl", "show", *wanted, unit],  # noqa: S607 - where the system has it
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    said = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    if said.pop("LoadState", "") != "loaded":
        return None
    return Service(unit=unit, settings=said)


def obstacles(paths: tuple[Path, ...], services: Iterable[Service]) -> list[str]:
    """Return, line by line, what keeps services from reading files, and what helps; none: []."""
    lines: list[str] = []
    for service in services:
        setting = next(filter(None, (service.hides(path.resolve()) for path in paths)), "")
        if setting:
            lines += _hidden(service, paths[0], setting)
        barrier = service.barrier(paths)
        if barrier:
            lines += _closed(service, barrier)
    if lines:
        moved = " ".join(shlex.quote(str(path)) for path in paths)
        lines += [f"or, for good: sudo mv {moved} {MODELS}/"]
    return lines


def _hidden(service: Service, path: Path, setting: str) -> Iterator[str]:
    template = service.unit.partition("@")[0] + ("@" if "@" in service.unit else "")
    folder = f"/etc/systemd/system/{template.removesuffix('.service')}.service.d"
    yield f"{path} is out of the sight of {service.unit}, whose sandbox hides that place. To show it:"
    yield f"sudo mkdir -p {folder}"
    yield f"printf '[Service]\\n{setting}\\n' | sudo tee {folder}/models.conf"
    yield "sudo systemctl daemon-reload"


def _closed(service: Service, barrier: str) -> Iterator[str]:
    kind, _, path = barrier.partition(":")
    what = "passed" if kind == "x" else "read"
    yield f"{path} may not be {what} by user {service.user}, as whom {service.unit} runs. To let it:"
    yield f"sudo setfacl -m u:{service.user}:{kind} {shlex.quote(path)}     # of the package acl"
