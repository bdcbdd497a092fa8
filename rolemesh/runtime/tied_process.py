"""Starts a process that gets a signal when this one dies; `child_process` then watches over it.

Apart from that because it needs no event loop: rolemesh-llama starts its llama-server before it
has one.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rolemesh.runtime import tied_exec


def start_tied(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    death_signal: signal.Signals,
    output_fd: int | None = None,
    umask: int = -1,
    keep_fds: Sequence[int] = (),
    new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `argv` (argv[0] is a path); raises OSError when the system has no room for it.

    The child gets `death_signal` when the calling thread ends, so call this in the main thread.
    `output_fd` is the child's stdout and stderr. With `new_session` it leads a process group of its
    own. That argv[0] cannot be executed shows as exit status 126 or 127.
    """
    return subprocess.Popen(  # noqa: S603 - argv is the caller's business
        _tied(argv, death_signal),
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output_fd,
        stderr=output_fd,
        umask=umask,
        pass_fds=keep_fds,
        start_new_session=new_session,
    )


def _tied(argv: Sequence[str], death_signal: signal.Signals) -> list[str]:
    script = str(Path(tied_exec.__file__).resolve())
    prefix = [sys.executable, "-I", "-S", script, str(int(death_signal)), str(os.getpid())]
    return [*prefix, *argv]
