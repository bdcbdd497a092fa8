"""Plays the service manager's end of $NOTIFY_SOCKET (sd_notify(3)) for any daemon under test."""

import array
import asyncio
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.poll import eventually

CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
MAX_DATAGRAM_BYTES = 1 << 16
MAX_FDS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """One datagram: its assignments, who sent it, and when (monotonic seconds) it was read."""

    fields: Mapping[str, str]
    pid: int
    at: float


class NotifySocket:
    """Records everything that is sent to it, in order, in `received`.

    It keeps descriptors as FDSTORE=1 asks for: `stored` has them by name.
    """

    def __init__(self, path: Path, listener: socket.socket) -> None:
        self._listener = listener
        self.path = path
        self.received: list[Notification] = []
        self.stored: dict[str, list[int]] = {}

    @property
    def environment(self) -> Mapping[str, str]:
        """What a daemon needs in its environment to send here."""
        return {"NOTIFY_SOCKET": str(self.path)}

    def values(self, name: str) -> list[str]:
        """Return all values that were assigned to `name`, in order: values("STATUS")."""
        return [each.fields[name] for each in self.received if name in each.fields]

    async def field(
        self, name: str, value: str | None = None, *, deadline_s: float = 20
    ) -> Notification:
        """Return the first notification that assigns `name` (to `value`, if given).

        What came before the call counts.
        """

        def find() -> Notification | None:
            fitting = (
                each
                for each in self.received
                if name in each.fields and value in {None, each.fields[name]}
            )
            return next(fitting, None)

        wanted = name if value is None else f"{name}={value}"
        return await eventually(find, what=f"{wanted} was notified", deadline_s=deadline_s)

    async def ready(self, *, deadline_s: float = 20) -> Notification:
        """Return the notification with READY=1."""
        return await self.field("READY", "1", deadline_s=deadline_s)

    def read(self) -> None:
        """Take in what has arrived; the event loop does this by itself."""
        while True:
            try:
                text, ancillary, _, _ = self._listener.recvmsg(
                    MAX_DATAGRAM_BYTES,
                    socket.CMSG_SPACE(CREDENTIALS.size) + socket.CMSG_SPACE(MAX_FDS * 4),
                    socket.MSG_CMSG_CLOEXEC,
                )
            except BlockingIOError:
                return
            content = {kind: data for _, kind, data in ancillary}
            pid = CREDENTIALS.unpack(content[socket.SCM_CREDENTIALS])[0]
            fields = dict(line.split("=", 1) for line in text.decode().splitlines() if "=" in line)
            self.received.append(Notification(fields=fields, pid=pid, at=time.monotonic()))
            self._store(fields, list(array.array("i", content.get(socket.SCM_RIGHTS, b""))))

    def _store(self, fields: Mapping[str, str], fds: list[int]) -> None:
        name = fields.get("FDNAME", "stored")
        if fields.get("FDSTORE") == "1":
            self.stored.setdefault(name, []).extend(fds)
        elif fields.get("FDSTOREREMOVE") == "1":
            fds = [*fds, *self.stored.pop(name, ())]
        if fields.get("FDSTORE") != "1":
            for fd in fds:
                os.close(fd)

    def drop_stored(self) -> None:
        """Close all that is stored, as systemd does once a service is stopped for good."""
        for name in tuple(self.stored):
            self._store({"FDSTOREREMOVE": "1", "FDNAME": name}, [])


@contextmanager
def notify_socket(folder: Path) -> Iterator[NotifySocket]:
    """Listen in `folder` for the length of the block; needs a running event loop."""
    path = folder / "notify"
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listener.bind(os.fspath(path))
        recorder = NotifySocket(path, listener)
        loop.add_reader(listener, recorder.read)
        try:
            yield recorder
        finally:
            loop.remove_reader(listener)
            recorder.drop_stored()
            path.unlink()
