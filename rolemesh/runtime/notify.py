"""What a daemon tells its service manager, in the words of sd_notify(3)."""

import os
import time

import sdnotify


class Notifier:
    """Sends to $NOTIFY_SOCKET; without one every call is silent, as sd_notify(3) is.

    The environment variable is taken out of this process's environment, so that no child of it
    can speak in its name.
    """

    def __init__(self) -> None:
        self._channel = sdnotify.SystemdNotifier()
        self._last_status = ""
        os.environ.pop("NOTIFY_SOCKET", None)

    def _send(self, *assignments: str) -> None:
        self._channel.notify("\n".join(assignments))

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


def watchdog_interval_s() -> float | None:
    """Return how often WATCHDOG=1 is due (half of WatchdogSec), None when nobody watches."""
    usec = os.environ.pop("WATCHDOG_USEC", "")
    pid = os.environ.pop("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(usec) / 2_000_000
