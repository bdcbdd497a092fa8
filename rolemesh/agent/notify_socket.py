"""The receiving side of sd_notify(3): datagrams, each with the pid that the kernel says sent it."""

import array
import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from rolemesh.errors import StartError
from rolemesh.llama.runtime_files import MAX_SOCKET_PATH_BYTES

MAX_DATAGRAM_BYTES: Final = 8192
MAX_DATAGRAMS_AT_ONCE: Final = 256
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_MAX_FDS: Final = 16

_Ancillary = list[tuple[int, int, bytes]]


class NotifySocket:
    """A bound socket whose messages go to `received` as (pid, assignments); by `open`."""

    def __init__(
        self, listener: socket.socket, received: Callable[[int, Mapping[str, str]], None]
    ) -> None:
        self._listener = listener
        self._received = received

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, path: Path, received: Callable[[int, Mapping[str, str]], None]
    ) -> Iterator["NotifySocket"]:
        """Listen at `path` for the length of the block; raises StartError when that is impossible."""
        length = len(os.fsencode(path))
        if length > MAX_SOCKET_PATH_BYTES:
            msg = (
                f"{path} is too long for a UNIX socket ({length} bytes, at most {MAX_SOCKET_PATH_BYTES}): "
                "a shorter runtime directory is needed"
            )
            raise StartError(msg)
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        with socket.socket(socket.AF_UNIX, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            try:
                path.unlink(missing_ok=True)
                listener.bind(os.fspath(path))
            except OSError as err:
                msg = f"cannot listen at {path}: {err.strerror}"
                raise StartError(msg) from err
            loop = asyncio.get_running_loop()
            notify_socket = cls(listener, received)
            loop.add_reader(listener, notify_socket.drain)
            try:
                yield notify_socket
            finally:
                loop.remove_reader(listener)
                path.unlink(missing_ok=True)

    def drain(self) -> None:
        """Take in what has arrived: what a process sent before it died or was late counts."""
        for _ in range(MAX_DATAGRAMS_AT_ONCE):
            try:
                content, ancillary, flags, _ = self._listener.recvmsg(
                    MAX_DATAGRAM_BYTES,
                    socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(_MAX_FDS * 4),
                    socket.MSG_CMSG_CLOEXEC,
                )
            except BlockingIOError:
                return
            pid = _take_credentials(ancillary)
            if pid is not None and not flags & socket.MSG_TRUNC:
                self._received(pid, parse_assignments(content))


def parse_assignments(content: bytes) -> Mapping[str, str]:
    """Read the NAME=VALUE lines of one message; lines of another form are ignored."""
    lines = content.decode("utf-8", "replace").split("\n")
    return {
        name: value for name, equals, value in (each.partition("=") for each in lines) if equals
    }


def _take_credentials(ancillary: _Ancillary) -> int | None:
    """Return the sender's pid, and close the descriptors it sent along: nobody here keeps any."""
    sender = None
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            sender = int(_CREDENTIALS.unpack_from(content)[0])
        elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds = array.array("i", content[: len(content) - len(content) % 4])
            for fd in fds:
                os.close(fd)
    return sender
