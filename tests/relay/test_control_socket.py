"""The way in for operators of this machine: who may open it, and what becomes of it."""

import grp
import os
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from rolemesh.config.tree import Program
from rolemesh.relay.control_socket import GROUP, NAME, control_path, open_control_socket
from tests.fakes.unix_http import ask_at


@pytest.mark.parametrize(
    ("program", "environ", "path"),
    [
        ("gateway", {}, None),
        ("gateway", {"RUNTIME_DIRECTORY": "/run/rolemesh/gateway"}, "/run/rolemesh/gateway"),
        ("node", {"RUNTIME_DIRECTORY": "/run/rolemesh/node-b"}, "/run/rolemesh/node-b"),
        ("node", {"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/u"}, "/run/a"),
        ("gateway", {"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/rolemesh/gateway"),
        ("node", {"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/rolemesh/node"),
    ],
)
def test_where_the_socket_is(program: Program, environ: dict[str, str], path: str | None) -> None:
    assert control_path(environ, program) == (None if path is None else Path(path, NAME))


async def test_its_file_is_open_to_owner_and_group_alone(short_path: Path) -> None:
    umask = os.umask(0)
    try:
        async with open_control_socket(short_path / NAME, []):
            stat = (short_path / NAME).stat()
    finally:
        os.umask(umask)
    assert stat.st_mode & 0o777 == 0o660
    groups = {group.gr_name: group.gr_gid for group in grp.getgrall()}
    own = {os.getegid(), *os.getgroups()}
    if GROUP in groups and (os.geteuid() == 0 or groups[GROUP] in own):
        assert stat.st_gid == groups[GROUP]


async def test_what_an_earlier_life_left_there_is_replaced(short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(short_path / NAME))
    async with open_control_socket(short_path / NAME, []):
        assert (await ask_at(short_path / NAME, "GET", "/"))[0] == 404
    assert not (short_path / NAME).exists()


async def test_where_another_program_answers_this_one_goes_without(
    short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_control_socket(short_path / NAME, []):
        async with open_control_socket(short_path / NAME, []):
            pass
        assert "another program answers there" in caplog.text
        assert (await ask_at(short_path / NAME, "GET", "/"))[0] == 404


async def test_who_takes_over_is_found_at_the_same_place_from_the_first_moment(
    short_path: Path,
) -> None:
    path = short_path / NAME
    async with open_control_socket(path, []):
        before = path.stat().st_ino
        async with open_control_socket(path, [], takes_over=True):
            assert path.stat().st_ino != before
            assert (await ask_at(path, "GET", "/"))[0] == 404
            assert not path.with_suffix(".new").exists()


async def test_who_was_taken_over_from_leaves_the_place_alone(short_path: Path) -> None:
    path = short_path / NAME
    async with AsyncExitStack() as newer:
        async with open_control_socket(path, []):
            await newer.enter_async_context(open_control_socket(path, [], takes_over=True))
        assert (await ask_at(path, "GET", "/"))[0] == 404


@pytest.mark.parametrize("name", ["a" * 200, "file/below"])
async def test_where_no_socket_can_be_the_program_runs_without(
    short_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (short_path / "file").write_text("")
    async with open_control_socket(short_path / name, []):
        assert "no control socket at" in caplog.text


async def test_without_a_place_there_is_none() -> None:
    async with open_control_socket(None, []):
        pass
