"""What a daemon tells its service manager, in the words of sd_notify(3)."""

import array
import contextlib
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

try:
    import sdnotify
except ImportError:  # EL 10 has no package of it
    sdnotify = None

SEND_TIMEOUT_S: Final = 1.0
"""How long a manager that takes nothing may hold up the daemon."""


class Notifier:
    """Sends to $NOTIFY_SOCKET; without one every call is silent, as sd_notify(3) is.

    The environment variable is taken out of this process's environment, so that no child of it
    can speak in its name.
    """

    def __init__(self) -> None:
        self._last_status = ""
        self._held: list[tuple[bytes, Sequence[int]]] | None = None
        self._channel = _open_channel()
        os.environ.pop("NOTIFY_SOCKET", None)

    def _send(self, *assignments: str, fds: Sequence[int] = ()) -> None:
        if self._channel is None:
            return
        data = "\n".join(assignments).encode("utf-8", "backslashreplace")
        if self._held is not None:
            self._held.append((data, fds))
            return
        self._send_now(data, fds)

    def _send_now(self, data: bytes, fds: Sequence[int]) -> None:
        if self._channel is None:
            return
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(OSError):
            self._channel.sendmsg([data], rights)

    def store(self, name: str, fd: int) -> None:
        """Have the manager keep a duplicate of `fd`, and pass it to this daemon's next life."""
        self._send("FDSTORE=1", f"FDNAME={name}", fds=(fd,))

    def unstore(self, name: str) -> None:
        """Have the manager close what it keeps under `name`."""
        self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def hold(self) -> None:
        """Keep back what is said from now on: the manager listens to the main process alone."""
        self._held = []

    def let_go(self) -> None:
        """Say what was held back, and hold back nothing more."""
        held, self._held = self._held or [], None
        for data, fds in held:
            self._send_now(data, fds)

    def hand_over(self, pid: int) -> None:
        """Tell that another process is the main one from now on, and say no more.

        Also the end of a reload.
        """
        self._send(f"MAINPID={pid}", "READY=1")
        self.close()

    def close(self) -> None:
        """Say no more."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def ready(self, status: str) -> None:
        """Tell that the daemon serves (also the end of a reload)."""
        self._last_status = status
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Tell that a reload begins; `ready` must follow, whatever its outcome."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """Tell that the daemon is on its way out."""
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """Set the one-line status; sent only when it changed."""
        if text != self._last_status:
            self._last_status = text
            self._send(f"STATUS={text}")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for `seconds` more, from now, for the start or stop under way."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def watchdog(self) -> None:
        """Report being alive."""
        self._send("WATCHDOG=1")

    def watchdog_trigger(self) -> None:
        """Ask to be treated as hung: the manager kills and restarts the service."""
        self._send("WATCHDOG=trigger")


def _open_channel() -> socket.socket | None:
    """Return a channel to the manager, None when there is none to talk to."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):  # what else sd_notify(3) knows, no unit of ours is given
        return None
    if address.startswith("/") and not Path(address).is_socket():  # nobody is there
        return None
    channel = _connect(address) if sdnotify is None else sdnotify.SystemdNotifier().socket
    if channel is not None:
        channel.settimeout(SEND_TIMEOUT_S)
    return channel


def _connect(address: str) -> socket.socket | None:
    """Do what sdnotify does, where there is none."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        channel.close()
        return None
    return channel


def watchdog_interval_s() -> float | None:
    """Return how often WATCHDOG=1 is due (half of WatchdogSec), None when nobody watches."""
    usec = os.environ.pop("WATCHDOG_USEC", "")
    pid = os.environ.pop("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(usec) / 2_000_000
