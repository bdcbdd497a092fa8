"""Listening sockets that the service manager passes at start (sd_listen_fds(3)).

They are those that an earlier life of this daemon stored with it, and those of a .socket unit.
"""

import contextlib
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Final

FIRST_FD: Final = 3
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedSocket:
    """A listening socket and the name that it was stored under, or that its unit gave it."""

    name: str
    socket: socket.socket


def take_passed_sockets(environment: MutableMapping[str, str]) -> tuple[PassedSocket, ...]:
    """Return the listening sockets passed to this process; whatever else was passed is closed.

    Their variables are taken out of `environment`: they are for nobody else.
    """
    pid, count, names = (environment.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return ()
    fds = range(FIRST_FD, FIRST_FD + int(count))
    named = dict(zip(fds, names.split(":"), strict=False))
    passed = (_listening(fd) for fd in fds)
    return tuple(
        PassedSocket(name=named.get(fd, ""), socket=each)
        for fd, each in zip(fds, passed, strict=True)
        if each is not None
    )


def _listening(fd: int) -> socket.socket | None:
    """Return the listening stream socket behind `fd`; close anything else."""
    try:
        found = socket.socket(fileno=fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.close(fd)
        return None
    found.set_inheritable(False)
    with contextlib.suppress(OSError):
        if found.type == socket.SOCK_STREAM and found.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            found.setblocking(False)  # noqa: FBT003  # its only parameter
            return found
    found.close()
    return None
