"""Which agent of a host uses which GPU: a lock for each, held as long as the agent lives.

A GPU is claimed by its UUID, an instance without a GPU by its name (`cpu0`): what two agents would
otherwise start twice. The kernel lets go of the locks of an agent that ends, however it does.
"""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from rolemesh.agent.instance_files import InstanceFiles
from rolemesh.names import NodeId

_LONGEST_RECORD: Final = 4096


def claims_directory(files: InstanceFiles, environ: Mapping[str, str] = os.environ) -> Path:
    """Return where all agents have their locks that may use the same GPUs.

    Those that systemd starts share one directory; those of a user, who supervise their
    llama-servers themselves, one of that user's.
    """
    if files.made_by_systemd:
        return files.parameters / "owners"
    users = environ.get("XDG_RUNTIME_DIR", "")
    if users:
        return Path(users).absolute() / "rolemesh-gpus"
    return Path(tempfile.gettempdir()) / f"rolemesh-gpus-{os.geteuid()}"


class GpuClaims:
    """What this agent has claimed. `config` is how its configuration is told from others'."""

    def __init__(
        self,
        directory: Path,
        *,
        node_id: NodeId,
        config: str = "",
        inherited: Mapping[str, int] | None = None,
    ) -> None:
        """`inherited` are the locks that another process of this agent shares with this one."""
        self._directory = directory
        self._record = json.dumps({"node_id": node_id, "pid": os.getpid(), "config": config})
        self._held: dict[str, int] = dict(inherited or {})
        self.problem = ""
        """Why claims are not known to other agents; "" when they are."""

    def claim(self, wanted: Collection[str], *, keep: Collection[str] = ()) -> Mapping[str, str]:
        """Hold all that is wanted and that nobody else has, and let go of everything else.

        What stands in `keep` is not let go of either, where it is held. Returns who has the others, by what they have. Where locks cannot be made, nobody is told,
        and nothing is refused.
        """
        self.problem = ""
        for key in self._held.keys() - {*wanted, *keep}:
            self._let_go(key)
        refused: dict[str, str] = {}
        for key in sorted(set(wanted) - self._held.keys()):
            try:
                owner = self._lock(key)
            except OSError as err:
                self.problem = f"cannot claim GPUs in {self._directory}: {err.strerror}"
                break
            if owner:
                refused[key] = owner
        return refused

    @property
    def held(self) -> Mapping[str, int]:
        """The descriptors of all locks by what they are for."""
        return self._held

    def hand_over(self) -> None:
        """Leave all locks to the process that shares them."""
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()

    def close(self) -> None:
        """Let go of everything."""
        for key in tuple(self._held):
            self._let_go(key)

    def _lock(self, key: str) -> str:
        """Take a lock, and return ""; or who has it. Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._directory.stat().st_uid != os.geteuid():
            raise PermissionError(0, "it belongs to another user")
        path = self._path(key)
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = _owner(os.pread(fd, _LONGEST_RECORD, 0))
                os.close(fd)
                return owner
            except OSError:
                os.close(fd)
                raise
            if _is_at(path, fd):
                self._held[key] = fd
                os.ftruncate(fd, 0)
                os.pwrite(fd, self._record.encode(), 0)
                return ""
            os.close(fd)  # its last owner removed it between open and lock

    def _let_go(self, key: str) -> None:
        with contextlib.suppress(OSError):
            self._path(key).unlink()  # while it is locked: else it might be another's by now
        os.close(self._held.pop(key))

    def _path(self, key: str) -> Path:
        return self._directory / f"{quote(key, safe='')}.lock"


def _is_at(path: Path, fd: int) -> bool:
    """Tell whether a file is still the one at its path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except OSError:
        return False


def _owner(record: bytes) -> str:
    """Return who wrote a record, in words."""
    try:
        fields: Any = json.loads(record)
        node_id, pid, config = fields["node_id"], fields["pid"], fields["config"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return "another agent"
    where = f", {config}" if config else ""
    return f"the agent of node {node_id} (pid {pid}{where})"
