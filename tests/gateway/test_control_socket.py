"""The way in for operators of this machine: who may open it, and what becomes of it."""

import grp
import os
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rolemesh.gateway.control_socket import GROUP, NAME, control_path, open_control_socket
from tests.gateway.harness import DISCOVERED, running_gateway

CONFIGURATION = {
    "models": {"coder": DISCOVERED},
    "auth": {"clients": {"ci": {"key": "ci-key"}}},
}


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({}, None),
        ({"RUNTIME_DIRECTORY": "/run/rolemesh/gateway"}, "/run/rolemesh/gateway/control.sock"),
        ({"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/u"}, "/run/a/control.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/rolemesh/gateway/control.sock"),
    ],
)
def test_where_the_socket_is(environ: dict[str, str], path: str | None) -> None:
    assert control_path(environ) == (None if path is None else Path(path))


async def get(path: Path, url: str) -> tuple[int, Any]:
    connector = aiohttp.UnixConnector(path=str(path))
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        http.get(f"http://localhost{url}") as reply,
    ):
        return reply.status, await (reply.json() if "json" in reply.content_type else reply.text())


async def test_whoever_can_open_it_needs_no_key_and_may_everything(
    tmp_path: Path, short_path: Path
) -> None:
    control = short_path / "new" / "folder" / NAME
    async with running_gateway(tmp_path, CONFIGURATION, control=control):
        status, tree = await get(control, "/v1/rolemesh/status")
        assert (status, tree["aliases"]) == (200, {"total": 1, "usable": 0})
        status, tree = await get(control, "/v1/models")
        assert [each["id"] for each in tree["rolemesh"]["unavailable_models"]] == ["coder"]
        status, text = await get(control, "/metrics")
        assert (status, "rolemesh_requests_in_progress 0" in text) == (200, True)
        assert (await get(control, "/v1/chat/completions"))[0] == 404  # nor is this a way to ask
    assert not control.exists()


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
        assert (await get(short_path / NAME, "/"))[0] == 404
    assert not (short_path / NAME).exists()


async def test_where_another_gateway_answers_this_one_goes_without(
    short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_control_socket(short_path / NAME, []):
        async with open_control_socket(short_path / NAME, []):
            pass
        assert "another program answers there" in caplog.text
        assert (await get(short_path / NAME, "/"))[0] == 404


@pytest.mark.parametrize("name", ["a" * 200, "file/below"])
async def test_where_no_socket_can_be_the_gateway_runs_without(
    short_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (short_path / "file").write_text("")
    async with open_control_socket(short_path / name, []):
        assert "no control socket at" in caplog.text


async def test_without_a_place_there_is_none() -> None:
    async with open_control_socket(None, []):
        pass
