import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.errors import ConnectFailed, UpstreamBroke, UpstreamTimeout
from rolemesh.relay.fetch import fetch, fetching
from tests.fakes.upstream import (
    CHUNKED_STREAM,
    LAST_CHUNK,
    Script,
    chunk,
    every_byte,
    reply,
    sends,
    sends_and_closes,
    sends_and_hangs,
    sends_and_resets,
    upstream,
)
from tests.lab.poll import eventually
from tests.lab.processes import free_port

FIELDS = (("X-A", "1"),)


async def test_a_request_is_sent_as_asked() -> None:
    async with upstream(sends(reply(b"{}", 201))) as up:
        got = await fetch(up.address, "POST", "/x", body=b"[1]", fields=FIELDS, timeout_s=5)
        assert (got.status, got.body) == (201, b"{}")
        assert (b"content-type", b"application/json") in got.fields
        (asked,) = up.conversations
        assert (asked.method_and_path, asked.body) == ("POST /x", b"[1]")
        assert asked.fields == {
            "host": f"127.0.0.1:{up.port}",
            "connection": "close",
            "content-length": "3",
            "x-a": "1",
        }


async def test_the_prefix_of_an_address_is_kept() -> None:
    async with upstream(sends(b"")) as up:
        address = UpstreamAddress.parse_url(f"{up.url}/deep/prefix/")
        with pytest.raises(UpstreamTimeout):
            await fetch(address, "POST", "/health", timeout_s=0.05)
        assert up.conversations[0].method_and_path == "POST /deep/prefix/health"


@pytest.mark.parametrize(
    "script",
    [
        sends(*every_byte(reply(b"hello"))),
        sends(b"HTTP/1.1 100 Continue\r\n\r\n" + reply(b"hello")),
        sends(CHUNKED_STREAM + chunk(b"hel") + chunk(b"lo") + LAST_CHUNK),
        sends_and_closes(b"HTTP/1.0 200 OK\r\n\r\nhel", b"lo"),
        sends(reply(b"hello") + b"more"),
    ],
)
async def test_a_reply_is_read_whole_however_it_comes(script: Script) -> None:
    async with upstream(script) as up:
        got = await fetch(up.address, "POST", "/", timeout_s=5)
        assert (got.status, got.body) == (200, b"hello")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (sends_and_closes(), "before the response was whole"),
        (sends_and_closes(reply(b"hello")[:-1]), "before the response was whole"),
        (sends_and_resets(b"HTTP/1.1 200 OK\r\n\r\nhel"), "reset"),
        (sends(b"garbage\r\n\r\n"), "malformed"),
        (sends(CHUNKED_STREAM + b"zz\r\n"), "malformed"),
        (sends(reply(b"a" * 101)), "larger than 100 bytes"),
        (sends_and_hangs(b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 101), "larger than 100 bytes"),
    ],
)
async def test_a_reply_that_is_none_is_an_error_that_says_why(script: Script, says: str) -> None:
    async with upstream(script) as up:
        with pytest.raises(UpstreamBroke, match=f"{up.url}: .*{says}"):
            await fetch(up.address, "POST", "/", timeout_s=5, limit_bytes=100)


@pytest.mark.parametrize(
    "script", [sends_and_hangs(), sends_and_hangs(reply(b"hello")[:-1]), sends_and_hangs(b"HTTP")]
)
async def test_the_whole_takes_no_longer_than_it_may(script: Script) -> None:
    async with upstream(script) as up:
        with pytest.raises(UpstreamTimeout, match=r"no reply within 0\.05 s"):
            await fetch(up.address, "POST", "/", timeout_s=0.05)


async def test_nobody_listening_is_a_failed_connection() -> None:
    address = UpstreamAddress.parse_url(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConnectFailed, match="Connection refused"):
        await fetch(address, "GET", "/", timeout_s=5)


async def test_a_reply_is_read_as_it_comes() -> None:
    script = sends_and_resets(CHUNKED_STREAM + chunk(b"one"), chunk(b"two") + b"1")
    async with upstream(script) as up, fetching(up.address, "POST", "/", connect_s=5) as stream:
        assert (await stream.head()).status == 200
        pieces = stream.pieces()
        assert await anext(pieces) == b"one"
        assert await anext(pieces) == b"two"
        with pytest.raises(UpstreamBroke, match="reset"):
            await anext(pieces)


async def test_who_stops_reading_ends_the_reply() -> None:
    async with upstream(sends_and_hangs(CHUNKED_STREAM)) as up:
        async with fetching(up.address, "POST", "/", connect_s=5) as stream:
            await stream.head()
        await eventually(lambda: not up.writers, what="the upstream has seen it leave")
