"""Where an instance's files are: the socket of its llama-server, and what it was told to run.

The parameters file holds {"model_id", "devices", "generation", "config"} and nothing else: path,
binary and arguments come from the node's configuration, which root owns and of which `config`
only says the directory, so that nothing the agent writes decides what is executed.
"""

import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rolemesh.errors import NodeError, StartError
from rolemesh.llama import server_facts
from rolemesh.llama.parameters import Parameters, peek_parameters
from rolemesh.llama.server_facts import NoFacts, ServerFacts, read_facts
from rolemesh.names import InstanceName, ModelId, NodeId
from rolemesh.runtime.state import StateFile

MAX_SOCKET_PATH_BYTES: Final = 107
"""What fits into sockaddr_un.sun_path beside the closing NUL (unix(7))."""

SYSTEMD_SOCKETS: Final = Path("/run/rolemesh-llama")
"""RuntimeDirectory= of the units, made at their start."""

SYSTEMD_PARAMETERS: Final = Path("/run/rolemesh/llama")
"""Made by systemd-tmpfiles, so that it outlives the agent."""

_LONGEST_INSTANCE: Final = "gpu999-" + "x" * 24
_LONGEST_NODE_NAME: Final = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFiles:
    """The directories of all instances: `sockets`/INSTANCE/http.sock, `parameters`/INSTANCE.json.

    `config` is the name of the agent whose configuration the instances read, "" for the first's.
    """

    sockets: Path
    parameters: Path
    made_by_systemd: bool = False
    config: str = ""

    @classmethod
    def below(cls, runtime_directory: Path) -> "InstanceFiles":
        """Return the places below one directory, as the child supervisor uses them."""
        return cls(sockets=runtime_directory, parameters=runtime_directory / "parameters")

    @classmethod
    def of_systemd(cls, config: str = "") -> "InstanceFiles":
        """Return the places that the units of systemd use."""
        return cls(
            sockets=SYSTEMD_SOCKETS,
            parameters=SYSTEMD_PARAMETERS,
            made_by_systemd=True,
            config=config,
        )

    def socket(self, instance: InstanceName) -> Path:
        """Return the path of the instance's HTTP socket."""
        return self.sockets / instance / "http.sock"

    def parameters_file(self, instance: InstanceName) -> Path:
        """Return the path of what the instance was told to run."""
        return self.parameters / f"{instance}.json"

    def prepare(self) -> None:
        """Make the directories; systemd makes its own.

        Raises StartError when that fails or when sockets in them would have too long a path.
        """
        if self.made_by_systemd:
            _check_parameters_directory(self.parameters)
            return
        longest = os.fsencode(self.socket(InstanceName(_LONGEST_INSTANCE)))
        if len(longest) > MAX_SOCKET_PATH_BYTES:
            msg = (
                f"{self.sockets} is too long a path for UNIX sockets (at most "
                f"{MAX_SOCKET_PATH_BYTES - len(longest) + len(os.fsencode(self.sockets))} bytes): "
                "set ROLEMESH_RUNTIME_DIRECTORY to a shorter one"
            )
            raise StartError(msg)
        for directory in (self.sockets, self.parameters):
            try:
                directory.mkdir(parents=True, exist_ok=True, mode=0o755)
            except OSError as err:
                msg = f"cannot make {directory}: {err.strerror}"
                raise StartError(msg) from err

    def write_parameters(
        self, instance: InstanceName, model_id: ModelId, devices: tuple[str, ...]
    ) -> None:
        """Tell the instance what to run at its next start; raises NodeError."""
        file = self._parameters(instance)
        before = _as_mapping(file.load()).get("generation")
        generation = before + 1 if isinstance(before, int) else 1
        tree = {"model_id": model_id, "devices": list(devices), "generation": generation}
        file.save({**tree, "config": self.config} if self.config else tree)
        if file.problem:
            msg = f"{instance} cannot be told what to run: {file.problem}"
            raise NodeError(msg)

    def read_parameters(self, instance: InstanceName) -> Parameters | None:
        """Return what the instance was told to run, None when it was told nothing of sense."""
        return peek_parameters(self.parameters_file(instance))

    def read_facts(self, instance: InstanceName) -> ServerFacts | NoFacts:
        """Return what the instance says of its llama-server, or why that is not known."""
        return read_facts(self.sockets / instance / server_facts.FILE_NAME)

    def remove_parameters(self, instance: InstanceName) -> None:
        """Take back what the instance was told to run."""
        with contextlib.suppress(OSError):
            self.parameters_file(instance).unlink()

    def _parameters(self, instance: InstanceName) -> StateFile:
        return StateFile(self.parameters_file(instance), mode=0o644)


def _check_parameters_directory(path: Path) -> None:
    if not os.access(path, os.W_OK | os.X_OK):
        msg = (
            f"{path} is not there, or user {os.geteuid()} may not write to it: "
            "`systemd-tmpfiles --create rolemesh-node-agent.conf` makes it for _rolemesh-agent; "
            "any other user sets ROLEMESH_UNIT_CONTROL=child"
        )
        raise StartError(msg)


def _as_mapping(tree: Any) -> Mapping[str, Any]:
    return tree if isinstance(tree, dict) else {}


def runtime_directory(
    node_id: NodeId, state_directory: Path, environ: Mapping[str, str] = os.environ
) -> Path:
    """Return the directory; it may not exist yet.

    $ROLEMESH_RUNTIME_DIRECTORY, else one of this node's own in $XDG_RUNTIME_DIR, else one of its
    own in the state directory.
    """
    given = environ.get("ROLEMESH_RUNTIME_DIRECTORY", "")
    if given:
        return Path(given).absolute()
    users = environ.get("XDG_RUNTIME_DIR", "")
    if users:
        return Path(users).absolute() / f"rolemesh-{_short(node_id)}"
    return state_directory / f"run-{_short(node_id)}"


def _short(node_id: NodeId) -> str:
    """Return a name for the node that leaves room for the rest of a socket's path."""
    if len(node_id) <= _LONGEST_NODE_NAME:
        return node_id
    digest = hashlib.sha256(node_id.encode()).hexdigest()[:8]
    return f"{node_id[: _LONGEST_NODE_NAME - 9]}-{digest}"
