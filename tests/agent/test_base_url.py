"""The URL a gateway shall use."""

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.agent.base_url import Listening, choose_base_url, find_local_address
from rolemesh.errors import ConnectFailed


@pytest.mark.parametrize(
    ("hosts", "facing", "expected"),
    [
        (("0.0.0.0",), "10.0.0.7", "http://10.0.0.7:8100"),
        (("::",), "fd00::7", "http://[fd00::7]:8100"),
        (("::",), "10.0.0.7", "http://10.0.0.7:8100"),
        (("::", "0.0.0.0"), "10.0.0.7", "http://10.0.0.7:8100"),
        (("127.0.0.1", "10.0.0.7"), "10.0.0.7", "http://10.0.0.7:8100"),
        (("127.0.0.1", "10.0.0.7"), "127.0.0.1", "http://127.0.0.1:8100"),
        (("10.0.0.7",), "10.0.0.9", "http://10.0.0.7:8100"),
        (("127.0.0.1", "10.0.0.7"), "192.168.1.1", "http://10.0.0.7:8100"),
        (("127.0.0.1",), "10.0.0.9", "http://127.0.0.1:8100"),
        (("localhost",), "127.0.0.1", "http://localhost:8100"),
        (("10.0.0.7",), "127.0.0.1", "http://10.0.0.7:8100"),
        (("box.lan",), "10.0.0.7", "http://box.lan:8100"),
    ],
)
def test_the_url_is_one_that_is_listened_on(
    hosts: tuple[str, ...], facing: str, expected: str
) -> None:
    assert choose_base_url(Listening(hosts=hosts, port=8100), facing) == expected


def test_an_agent_that_serves_https_advertises_it() -> None:
    listening = Listening(hosts=("::1",), port=8100, scheme="https")
    assert choose_base_url(listening, "::1") == "https://[::1]:8100"


async def test_the_address_that_faces_a_local_gateway_is_loopback() -> None:
    assert await find_local_address(UpstreamAddress.parse_url("http://127.0.0.1:9")) == "127.0.0.1"


async def test_a_name_that_does_not_resolve_is_a_failed_connection() -> None:
    with pytest.raises(ConnectFailed, match=r"no way to http://gateway\.invalid"):
        await find_local_address(UpstreamAddress.parse_url("http://gateway.invalid:8000"))
