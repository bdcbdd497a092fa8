"""Clients that connect again and again, each request on a connection of its own."""

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.lab.host import Host
from tests.lab.hosts import Lab
from tests.lab.poll import eventually_sync

CLIENTS = 4
PATIENCE_S = 30


@dataclass(slots=True)
class Hammered:
    """What the clients met so far. `broken` connections were accepted, then cut."""

    answered: int = 0
    refused: int = 0
    broken: int = 0
    longest_s: float = 0.0
    surprises: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, outcome: str, took_s: float) -> None:
        """Count one request."""
        with self._lock:
            setattr(self, outcome, getattr(self, outcome) + 1)
            self.longest_s = max(self.longest_s, took_s)

    def wait_for_more(self, answers: int = 20) -> None:
        """Wait until so many more requests were answered."""
        goal = self.answered + answers
        what = f"{answers} more answers ({self})"
        eventually_sync(lambda: self.answered >= goal, what=what, deadline_s=PATIENCE_S)


@contextmanager
def hammering(lab: Lab, host: Host, port: int) -> Iterator[Hammered]:
    """Let clients ask a daemon for /health for the length of the block."""
    hammered = Hammered()
    stop = threading.Event()

    def hammer() -> None:
        lab.network.enter_client()
        while not stop.is_set():
            _ask(host.address, port, hammered)

    threads = [threading.Thread(target=hammer) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield hammered
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _ask(address: str, port: int, hammered: Hammered) -> None:
    began = time.monotonic()
    connection = http.client.HTTPConnection(address, port, timeout=PATIENCE_S)
    outcome = "answered"
    try:
        connection.request("GET", "/health", headers={"Connection": "close"})
        reply = connection.getresponse()
        reply.read()
        if reply.status != 200:
            hammered.surprises.append(f"status {reply.status}")
    except ConnectionRefusedError:
        outcome = "refused"
    except (ConnectionError, http.client.HTTPException):
        outcome = "broken"
    except OSError as err:
        hammered.surprises.append(repr(err))
        outcome = "broken"
    finally:
        connection.close()
    hammered.note(outcome, time.monotonic() - began)
