"""A network of namespaces: one switch, one namespace per machine, nothing of this machine's own.

The addresses are the same in every run, because no run can see another's. The tests themselves
stand in the namespace CLIENT: sockets that are opened there can be used anywhere in the process.
"""

import ctypes
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")

SUBNET = "10.77.0"
CLIENT = "client"
CLIENT_NUMBER = 254
_SWITCH = "switch"
_NAMED_NAMESPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000


class PrivateNetwork:
    """A switch, and machines plugged into it. `tag` is part of the name of each namespace."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._numbers: dict[str, int] = {}
        self._add_namespace(_SWITCH)
        self._ip(_SWITCH, "link add br0 type bridge")
        self._ip(_SWITCH, "link set br0 up")
        self.add(CLIENT, CLIENT_NUMBER)
        self._client = ThreadPoolExecutor(1, initializer=self.enter_client)

    def add(self, machine: str, number: int) -> None:
        """Plug in a new machine with the address SUBNET.number."""
        self._numbers[machine] = number
        self._add_namespace(machine)
        # The same hardware address each time: the neighbours remember the last one for a while.
        address = f"02:00:00:00:00:{number:02x}"
        peer = f"peer name {self._port(machine)} netns {self._namespace(_SWITCH)}"
        self._ip(machine, f"link add host0 address {address} type veth {peer}")
        self._ip(_SWITCH, f"link set dev {self._port(machine)} master br0 up")
        self._ip(machine, f"addr add {SUBNET}.{number}/24 dev host0")
        self._ip(machine, "link set host0 up")

    def address(self, machine: str) -> str:
        """Return a machine's address."""
        return f"{SUBNET}.{self._numbers[machine]}"

    def namespace_file(self, machine: str) -> Path:
        """Return the file that stands for a machine's network namespace."""
        return _NAMED_NAMESPACES / self._namespace(machine)

    def pull(self, machine: str) -> None:
        """Pull a machine's cable: it keeps its address, and nothing gets through."""
        self._ip(_SWITCH, f"link set dev {self._port(machine)} down")

    def plug(self, machine: str) -> None:
        """Plug it in again."""
        self._ip(_SWITCH, f"link set dev {self._port(machine)} up")

    def from_client(self, act: Callable[[], _T]) -> _T:
        """Do something in the client's namespace, in a thread that is always there."""
        return self._client.submit(act).result()

    def enter_client(self) -> None:
        """Move the calling thread, which must be one that is used for nothing else, to CLIENT."""
        libc = ctypes.CDLL(None, use_errno=True)
        with self.namespace_file(CLIENT).open() as namespace:
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns", str(self.namespace_file(CLIENT)))

    def connect(self, machine: str, port: int, *, timeout_s: float = 10) -> socket.socket:
        """Return a connection from the client to a machine."""
        target = (self.address(machine), port)
        connection = self.from_client(lambda: socket.create_connection(target, timeout_s))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def close(self) -> None:
        """Remove everything, as far as it is there."""
        self._client.shutdown()
        remove_namespaces(self._tag)

    def _namespace(self, machine: str) -> str:
        return f"{self._tag}-{machine}"

    @staticmethod
    def _port(machine: str) -> str:
        return f"to-{machine}"

    def _add_namespace(self, machine: str) -> None:
        _run(["ip", "netns", "add", self._namespace(machine)])
        self._ip(machine, "link set lo up")

    def _ip(self, machine: str, command: str) -> None:
        _run(["ip", "-n", self._namespace(machine), *command.split()])


def remove_namespaces(tag: str) -> None:
    """Remove the namespaces of one run, and with them all their interfaces."""
    for namespace in _NAMED_NAMESPACES.glob(f"{tag}-*"):
        _run(["ip", "netns", "delete", namespace.name])


def tags_in_use() -> set[str]:
    """Return the tags of all namespaces that this machine has."""
    names = (path.name for path in _NAMED_NAMESPACES.glob("*-*"))
    return {name.partition("-")[0] for name in names}


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        msg = f"{' '.join(command)}: {done.stderr.strip()}"
        raise RuntimeError(msg)
