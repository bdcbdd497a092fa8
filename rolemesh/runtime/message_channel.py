"""Messages with descriptors between two processes of a daemon, over a pair of sockets.

A message is a JSON object of its own packet (SOCK_SEQPACKET of unix(7)) with a field `say`.
"""

import array
import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

MAX_FDS: Final = 253  # SCM_MAX_FD of Linux
MAX_BYTES: Final = 192 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What was said, and the descriptors that came with it: whoever receives them closes them."""

    say: str
    fields: dict[str, Any]
    fds: tuple[int, ...] = ()


class MessageChannel:
    """One end; the other one is closed when its process ends, if not before."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._end.set_inheritable(False)

    @classmethod
    def pair(cls) -> tuple[Self, socket.socket]:
        """Return one end, and the other for another process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), theirs

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._end.fileno()

    def send(self, say: str, fds: Sequence[int] = (), **fields: Any) -> None:
        """Say something; nothing becomes of it when nobody is there any more."""
        data = json.dumps({"say": say, **fields}).encode()
        with contextlib.suppress(OSError):
            socket.send_fds(self._end, [data], fds)

    def receive_now(self, timeout_s: float) -> Message | None:
        """Return the next message, None when there will be none; raises TimeoutError.

        For a process that has no event loop yet.
        """
        self._end.settimeout(timeout_s)
        return self._read()

    async def receive(self) -> Message | None:
        """Return the next message, None when the other end is closed."""
        self._end.setblocking(False)  # noqa: FBT003  # its only parameter
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(BlockingIOError):
                return self._read()
            readable = asyncio.Event()
            loop.add_reader(self._end, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(self._end)

    def _read(self) -> Message | None:
        # Not socket.recv_fds: it takes the flags and forgets them.
        space = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
        try:
            data, ancillary, _, _ = self._end.recvmsg(MAX_BYTES, space, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return None
        fds = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content)
        try:
            fields = json.loads(data)  # none at all where the other end is closed
            return Message(say=fields.pop("say"), fields=fields, fds=tuple(fds))
        except (ValueError, KeyError, TypeError, AttributeError):
            for fd in fds:
                os.close(fd)
            return None

    def close(self) -> None:
        """Say and hear no more."""
        self._end.close()
