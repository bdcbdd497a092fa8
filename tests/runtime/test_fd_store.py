"""What the service manager passes at start; whole restarts are in tests/flows/test_restart.py."""

import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rolemesh.runtime.fd_store import take_passed_sockets
from tests.fakes import with_fds
from tests.lab.processes import run_to_end

ROOT = Path(__file__).parents[2]

TAKE = """
import json, os
from rolemesh.runtime.fd_store import take_passed_sockets
passed = take_passed_sockets(os.environ)
print(json.dumps({
    "passed": {each.name: each.socket.getsockname() for each in passed},
    "inheritable": [each.socket.get_inheritable() for each in passed],
    "blocking": [each.socket.getblocking() for each in passed],
    "variables": [name for name in os.environ if name.startswith("LISTEN_")],
    "fds": [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")],
}))
"""


async def taken(fds: Mapping[str, int]) -> dict[str, Any]:
    """Return what a program makes of descriptors that it is passed."""
    finished = await run_to_end(
        [
            *(sys.executable, with_fds.__file__),
            *(f"{name}={fd}" for name, fd in fds.items()),
            *("--", sys.executable, "-c", TAKE),
        ],
        environment={"PYTHONPATH": str(ROOT)},
        pass_fds=tuple(fds.values()),
    )
    assert finished.status == 0, finished.stderr
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


async def test_listening_sockets_are_taken_by_name_and_given_to_nobody_else() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as two,
    ):
        found = await taken({"http-one": one.fileno(), "x.socket": two.fileno()})
        assert found["passed"] == {
            "http-one": list(one.getsockname()),
            "x.socket": list(two.getsockname()),
        }
    assert found["inheritable"] == [False, False]
    assert found["blocking"] == [False, False]
    assert found["variables"] == []


async def test_whatever_else_is_passed_is_closed() -> None:
    with (
        socket.socket() as bound,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connection,
    ):
        bound.bind(("127.0.0.1", 0))
        fds = {"a": bound.fileno(), "b": datagram.fileno(), "c": connection.fileno()}
        found = await taken(fds)
    assert found["passed"] == {}
    assert not set(found["fds"]) & {"3", "4", "5"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid())},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"},
        {"LISTEN_FDS": "1"},
    ],
)
def test_what_is_for_another_process_or_nobody_is_not_taken(environment: dict[str, str]) -> None:
    assert take_passed_sockets(environment) == ()
    assert environment == {}
