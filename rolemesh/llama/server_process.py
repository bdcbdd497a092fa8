"""The llama-server as a process: how it is started, and how it ended.

All that a cold model waits for comes before this: it needs no event loop, and little to import.
`server` looks after the process from then on.
"""

import os
import signal
import subprocess
from dataclasses import dataclass
from typing import Final

from rolemesh.errors import NodeError
from rolemesh.llama.command import ServerCommand
from rolemesh.runtime import tied_exec
from rolemesh.runtime.tied_process import start_tied

# The socket is for the owner and the group: the agent is in it.
_UMASK: Final = 0o007


class ServerEnded(NodeError):
    """The llama-server ended by itself; `status` as subprocess has it (negative: a signal)."""

    def __init__(self, status: int, explanation: str) -> None:
        super().__init__(
            f"llama-server {describe_status(status)}: {explanation or 'it said nothing'}"
        )
        self.status = status

    @property
    def could_not_run(self) -> bool:
        """Whether the program itself is at fault: not executable, or a library is missing."""
        return self.status in {tied_exec.CANNOT_EXECUTE, tied_exec.NOT_FOUND}


def describe_status(status: int) -> str:
    """Say how a process ended."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


@dataclass(frozen=True, slots=True)
class StartedServer:
    """A llama-server that nobody looks after yet; `log_fd` is where its log is read, unblocked."""

    process: subprocess.Popen[bytes]
    log_fd: int


def start_server(command: ServerCommand, *, lock_fd: int) -> StartedServer:
    """Start a llama-server that inherits `lock_fd`; the kernel kills it when this process dies.

    Raises ServerEnded when the system has no room for a process.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(write_fd, True)
    try:
        process = start_tied(
            command.argv,
            environment=command.environment,
            death_signal=signal.SIGKILL,
            output_fd=write_fd,
            umask=_UMASK,
            keep_fds=(lock_fd,),
        )
    except OSError as err:
        os.close(read_fd)
        raise ServerEnded(tied_exec.CANNOT_EXECUTE, f"cannot be started: {err.strerror}") from err
    finally:
        os.close(write_fd)
    return StartedServer(process, read_fd)
