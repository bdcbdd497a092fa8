"""What a daemon tells its service manager, in the words of sd_notify(3)."""

import array
import contextlib
import os
import socket
import time
from collections.abc import Sequence
from typing import Final

SEND_TIMEOUT_S: Final = 1.0
"""How long a manager that takes nothing may hold up the daemon."""


class Notifier:
    """Sends to $NOTIFY_SOCKET; without one every call is silent, as sd_notify(3) is.

    The environment variable is taken out of this process's environment, so that no child of it
    can speak in its name.
    """

    def __init__(self) -> None:
        self._last_status = ""
        self._socket = _connected(os.environ.pop("NOTIFY_SOCKET", ""))

    def _send(self, *assignments: str, fds: Sequence[int] = ()) -> None:
        if self._socket is None:
            return
        text = "\n".join(assignments).encode("utf-8", "backslashreplace")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(OSError):
            self._socket.sendmsg([text], rights)

    def store(self, name: str, fd: int) -> None:
        """Have the manager keep a duplicate of `fd`, and pass it to this daemon's next life."""
        self._send("FDSTORE=1", f"FDNAME={name}", fds=(fd,))

    def unstore(self, name: str) -> None:
        """Have the manager close what it keeps under `name`."""
        self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

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


def _connected(address: str) -> socket.socket | None:
    """Return a socket to the manager, None when there is none to talk to."""
    if not address:
        return None
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    channel.settimeout(SEND_TIMEOUT_S)
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
