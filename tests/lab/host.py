"""One host with a real systemd, in a container: boot it, run commands there, cut its power."""

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.lab import control_group
from tests.lab.poll import eventually_sync
from tests.lab.private_network import PrivateNetwork
from tests.lab.processes import is_running

BOOT = Path(__file__).with_name("boot_host.sh")
BOOT_DEADLINE_S = 60
COMMAND_TIMEOUT_S = 60
CLEAN_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "DEBIAN_FRONTEND": "noninteractive",
    "SYSTEMD_PAGER": "",
}
_NAMESPACES = ("-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w")
_POWEROFF = signal.SIGRTMIN + 4  # what systemd takes as the wish to power off


class HostError(Exception):
    """A host, or a command on it, did not do what it should; the text has the output."""


class Host:
    """One host: booted by `boot`, told what to do by `run`."""

    def __init__(
        self,
        *,
        name: str,
        network: PrivateNetwork,
        folder: Path,
        layers: Sequence[Path],
        cgroup: Path,
        binds: Mapping[str, Path],
    ) -> None:
        self.name = name
        self._network = network
        self._folder = folder
        self._layers = tuple(layers)
        self._cgroup = cgroup
        self._binds = dict(binds)
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._prepare()

    @property
    def address(self) -> str:
        """Its address, for the other hosts and for the client."""
        return self._network.address(self.name)

    @property
    def is_up(self) -> bool:
        """Whether it has been booted and its systemd is there."""
        return self._leader > 0 and is_running(self._leader)

    def boot(self) -> None:
        """Start it and wait until its systemd has done all that belongs to a boot."""
        self._network.plug(self.name)
        self._cgroup.mkdir(parents=True, exist_ok=True)
        namespace = self._network.namespace_file(self.name)
        binds = [f"--bind-ro={source}:{target}" for target, source in self._binds.items()]
        lower = ":".join(map(str, self._layers))
        where = map(str, (self._folder, lower, self._cgroup, namespace))
        command = ["unshare", "--mount", "--propagation=private", str(BOOT), self.name, *where]
        with self._console.open("wb") as console:
            self._supervisor = subprocess.Popen(
                [*command, *binds],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=CLEAN_ENVIRONMENT,
                start_new_session=True,
            )
        what = f"{self.name} is up"
        self._leader = eventually_sync(self._find_leader, what=what, deadline_s=BOOT_DEADLINE_S)
        eventually_sync(self._has_booted, what=what, deadline_s=BOOT_DEADLINE_S)

    def run(
        self,
        *command: str | Path,
        text: str = "",
        user: str = "",
        check: bool = True,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there, `text` on its stdin; raises HostError when `check` and it fails."""
        if user:
            command = ("runuser", "-u", user, "--", *command)
        done = subprocess.run(
            [*self._inside(), *command],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=CLEAN_ENVIRONMENT,
            check=False,
        )
        if check and done.returncode != 0:
            words = " ".join(map(str, command))
            output = f"{done.stdout}{done.stderr}"
            msg = f"{self.name}: {words}: status {done.returncode}\n{output}"
            raise HostError(msg)
        return done

    def start(self, *command: str | Path, log: Path) -> subprocess.Popen[bytes]:
        """Start a command there that goes on; whoever calls this ends it."""
        with log.open("wb") as output:
            return subprocess.Popen(
                [*self._inside(), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=CLEAN_ENVIRONMENT,
            )

    def put(self, path: str | Path, content: str | bytes, *, mode: int = 0o644) -> None:
        """Write a file there, owned by root, and the folders that it is in."""
        data = content.encode() if isinstance(content, str) else content
        script = 'mkdir -p "$(dirname "$0")" && cat > "$0" && chmod "$1" "$0"'
        command = [*self._inside(), "sh", "-c", script, str(path), f"{mode:o}"]
        subprocess.run(command, input=data, check=True, env=CLEAN_ENVIRONMENT)

    def show(self, unit: str, name: str) -> str:
        """Return what `systemctl show` says about a unit."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).stdout.strip()

    def journal(self, *matches: str, lines: int | None = None) -> list[dict[str, Any]]:
        """Return the journal's entries, or those that match all FIELD=VALUE."""
        self.run("journalctl", "--sync", check=False)
        limit = [] if lines is None else [f"--lines={lines}"]
        printed = self.run("journalctl", "--quiet", "--output=json", "--all", *limit, *matches)
        return [json.loads(line) for line in printed.stdout.splitlines()]

    def journal_text(self, *options: str, lines: int = 60) -> str:
        """Return the last lines of the journal, for people."""
        if not self.is_up:
            return self._console.read_text(errors="replace")
        return self.run(
            "journalctl", "--no-pager", f"--lines={lines}", *options, check=False
        ).stdout

    def pid_outside(self, pid: int) -> int:
        """Return the pid that a process of the host has on this machine."""
        ours = _pid_namespace(self._leader)
        everybody = (int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit())
        (found,) = [
            each for each in everybody if _pid_namespace(each) == ours and _innermost(each) == pid
        ]
        return found

    def pull_cable(self) -> None:
        """Cut its network."""
        self._network.pull(self.name)

    def plug_cable(self) -> None:
        """Mend its network."""
        self._network.plug(self.name)

    def kill_power(self) -> None:
        """Cut its power: it is gone at once, nobody is told, and its disk stays as it is."""
        self._network.pull(self.name)  # else its kernel would answer for it
        self._kill()

    def power_off(self) -> None:
        """Shut it down in an orderly way."""
        os.kill(self._leader, _POWEROFF)
        eventually_sync(lambda: not self.is_up, what=f"{self.name} is off", deadline_s=60)
        self._kill()

    def close(self) -> None:
        """End it, whatever it does."""
        self._kill()

    def layers(self) -> tuple[Path, ...]:
        """Return its root, for other hosts to be booted from; it must be off and stay so."""
        assert not self.is_up
        return (self._folder / "upper", *self._layers)

    @property
    def _console(self) -> Path:
        return self._folder / "console.log"

    def _console_text(self) -> str:
        """Return the last lines of what it wrote to its console."""
        if not self._console.exists():
            return "(never booted)"
        return self._console.read_text(errors="replace")[-2000:]

    def _inside(self) -> list[str | Path]:
        if not self.is_up:
            msg = f"{self.name} is not up: {self._console_text()}"
            raise HostError(msg)
        clean = [f"{name}={value}" for name, value in CLEAN_ENVIRONMENT.items()]
        return ["nsenter", "-t", str(self._leader), *_NAMESPACES, "env", "-i", *clean]

    def _prepare(self) -> None:
        etc = self._folder / "upper" / "etc"
        etc.mkdir(parents=True)
        machine_id = hashlib.md5(str(self._folder).encode()).hexdigest()
        (etc / "machine-id").write_text(f"{machine_id}\n")
        (etc / "hostname").write_text(f"{self.name}\n")

    def name_hosts(self, lines: Iterable[str]) -> None:
        """Let it know the others by name; before its boot."""
        hosts = ("127.0.0.1 localhost", *lines)
        (self._folder / "upper/etc/hosts").write_text("".join(f"{line}\n" for line in hosts))

    def _find_leader(self) -> int:
        """Return the pid of its systemd: the child of systemd-nspawn with that name."""
        assert self._supervisor is not None
        pid = self._supervisor.pid
        if self._supervisor.poll() is not None:
            msg = f"{self.name} did not start: {self._console_text()}"
            raise HostError(msg)
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return next((int(child) for child in children if _command(child) == "systemd"), 0)
        except OSError:
            return 0

    def _has_booted(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in {"running", "degraded"}

    def _kill(self) -> None:
        # Removed too: whoever is started into a group that was once killed is killed at once.
        control_group.remove(self._cgroup)
        if self._supervisor is not None:
            self._supervisor.wait()
        self._supervisor, self._leader = None, 0


def _command(pid: str) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _pid_namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""


def _innermost(pid: int) -> int:
    """Return the pid that a process has where it runs (NSpid of proc(5)), 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    (line,) = [each for each in lines if each.startswith("NSpid:")]
    return int(line.split()[-1])
