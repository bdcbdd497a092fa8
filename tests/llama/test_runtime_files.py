"""The directory, the socket and the lock of a running instance."""

import os
import socket
from pathlib import Path

import pytest

from rolemesh.errors import ConfigError, StartError
from rolemesh.llama.runtime_files import RuntimeFiles, hold_lock
from rolemesh.names import InstanceName
from tests.lab.poll import eventually
from tests.lab.processes import start_program

GPU0 = InstanceName("gpu0")


def ignore(_text: str) -> None:
    return None


@pytest.mark.parametrize(
    ("environment", "directory"),
    [
        ({}, "/run/rolemesh-llama/gpu0"),
        ({"RUNTIME_DIRECTORY": "/run/x"}, "/run/x"),
        ({"RUNTIME_DIRECTORY": "/run/x:/run/y"}, "/run/x"),
    ],
)
def test_the_directory_is_the_units(environment: dict[str, str], directory: str) -> None:
    files = RuntimeFiles.of(GPU0, environment)
    assert files.socket == Path(directory, "http.sock")
    assert files.lock == Path(directory, "lock")


def test_the_directory_is_made_for_owner_and_group(short_path: Path) -> None:
    files = RuntimeFiles(directory=short_path / "llama" / "gpu0")
    files.prepare()
    files.prepare()
    assert files.directory.stat().st_mode & 0o777 == 0o770 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_path_of_107_bytes_is_the_longest(short_path: Path) -> None:
    room = 107 - len(os.fsencode(short_path / "x" / "http.sock"))
    RuntimeFiles(directory=short_path / ("x" * (1 + room))).prepare()
    with pytest.raises(ConfigError) as caught:
        RuntimeFiles(directory=short_path / ("x" * (2 + room))).prepare()
    assert str(caught.value).endswith(
        "x/http.sock: is too long for a UNIX socket (108 bytes, at most 107); "
        "set RUNTIME_DIRECTORY to a shorter path"
    )


def test_a_directory_that_cannot_be_made_is_named(short_path: Path) -> None:
    (short_path / "file").touch()
    files = RuntimeFiles(directory=short_path / "file" / "gpu0")
    with pytest.raises(ConfigError, match=r"file/gpu0: cannot be made: .*set RUNTIME_DIRECTORY"):
        files.prepare()


def test_a_stale_socket_is_removed(short_path: Path) -> None:
    files = RuntimeFiles(directory=short_path)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(files.socket))
    assert files.socket.exists()
    files.remove_socket()
    files.remove_socket()
    assert not files.socket.exists()


def test_what_cannot_be_removed_is_named(short_path: Path) -> None:
    files = RuntimeFiles(directory=short_path)
    files.socket.mkdir()
    with pytest.raises(ConfigError, match=r"http.sock: cannot be removed: .*; remove it"):
        files.remove_socket()


def test_a_lock_is_held_once(short_path: Path) -> None:
    files = RuntimeFiles(directory=short_path)
    waited: list[str] = []
    again = hold_lock(files, wait_s=0.15, waiting=waited.append)
    with hold_lock(files, wait_s=5, waiting=ignore), pytest.raises(StartError) as caught, again:
        pytest.fail("held twice")
    holder = f"rolemesh-llama with pid {os.getpid()}, or its llama-server"
    assert set(waited) == {holder}
    assert str(caught.value) == (
        f"{files.lock} is still held after 0.15 s by {holder}: this instance runs already; "
        f"stop that one (`fuser {files.lock}` shows who it is)"
    )
    with hold_lock(files, wait_s=0, waiting=ignore):
        pass


async def test_a_lock_is_held_until_the_last_who_inherited_it_is_gone(
    short_path: Path, tmp_path: Path
) -> None:
    files = RuntimeFiles(directory=short_path)
    with hold_lock(files, wait_s=0, waiting=ignore) as fd:
        child = start_program(["sleep", "60"], log=tmp_path / "log", pass_fds=(fd,))
    with pytest.raises(StartError), hold_lock(files, wait_s=0, waiting=ignore):
        pytest.fail("the child still has it")

    def stop(_holder: str) -> None:
        child.send(9)  # type: ignore[arg-type]

    with hold_lock(files, wait_s=10, waiting=stop):
        await eventually(lambda: child.status is not None, what="the child is gone")


def test_a_lock_that_cannot_be_opened_is_named(short_path: Path) -> None:
    files = RuntimeFiles(directory=short_path / "absent")
    expected = pytest.raises(ConfigError, match="absent/lock: cannot be opened: No such file")
    with expected, hold_lock(files, wait_s=0, waiting=ignore):
        pytest.fail("there is no lock")
