"""What arrives at the notify socket, and from whom."""

import asyncio
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from rolemesh.agent.notify_socket import NotifySocket, parse_assignments
from rolemesh.errors import StartError
from tests.lab.poll import eventually

Received = list[tuple[int, Mapping[str, str]]]


def send(path: Path, content: bytes, *fds: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(os.fspath(path))
        if fds:
            socket.send_fds(sender, [content], fds)
        else:
            sender.send(content)


@pytest.mark.parametrize(
    ("content", "assignments"),
    [
        (b"READY=1", {"READY": "1"}),
        (b"READY=1\nSTATUS=a=b c\n", {"READY": "1", "STATUS": "a=b c"}),
        (b"", {}),
        (b"nonsense\n\nX=", {"X": ""}),
        (b"STATUS=\xff", {"STATUS": "\N{REPLACEMENT CHARACTER}"}),
    ],
)
def test_a_message_is_lines_of_assignments(content: bytes, assignments: Mapping[str, str]) -> None:
    assert parse_assignments(content) == assignments


async def test_each_message_comes_with_the_pid_of_its_sender(short_path: Path) -> None:
    received: Received = []
    path = short_path / "notify"
    with NotifySocket.open(path, lambda pid, fields: received.append((pid, fields))):
        send(path, b"READY=1")
        await eventually(lambda: received, what="a message arrived")
        assert received == [(os.getpid(), {"READY": "1"})]
        code = "import socket,sys; socket.socket(1, 2).sendto(b'A=b', sys.argv[1])"
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", code, path)
        await eventually(lambda: len(received) == 2, what="another arrived")
        assert received[1] == (other.pid, {"A": "b"})
        await other.wait()
    assert not path.exists()


async def test_what_a_dead_process_sent_is_there_when_asked_for(short_path: Path) -> None:
    received: Received = []
    path = short_path / "notify"
    with NotifySocket.open(path, lambda pid, fields: received.append((pid, fields))) as listener:
        for number in range(5):
            send(path, f"N={number}".encode())
        listener.drain()
        assert [fields["N"] for _, fields in received] == list("01234")


async def test_descriptors_that_come_along_are_closed(short_path: Path) -> None:
    received: Received = []
    path = short_path / "notify"
    read_end, write_end = os.pipe()
    with NotifySocket.open(path, lambda pid, fields: received.append((pid, fields))) as listener:
        send(path, b"BARRIER=1", write_end)
        os.close(write_end)
        listener.drain()
        assert received
        assert os.read(read_end, 1) == b""  # blocks for ever if a copy were still open
    os.close(read_end)


async def test_a_stale_socket_is_replaced(short_path: Path) -> None:
    path = short_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
        stale.bind(os.fspath(path))
    with NotifySocket.open(path, lambda _pid, _fields: None):
        send(path, b"READY=1")


async def test_a_path_that_is_too_long_is_refused_by_name(short_path: Path) -> None:
    path = short_path / ("x" * 120)
    with pytest.raises(StartError, match=r"is too long for a UNIX socket .*at most 107"):
        NotifySocket.open(path, lambda _pid, _fields: None).__enter__()


async def test_a_directory_that_is_not_there_is_refused_by_name(short_path: Path) -> None:
    path = short_path / "absent" / "notify"
    with pytest.raises(StartError, match=r"cannot listen at .*absent/notify: No such file"):
        NotifySocket.open(path, lambda _pid, _fields: None).__enter__()
