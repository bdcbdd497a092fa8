import ipaddress
import socket

import pytest

from rolemesh.config.settings import ClientKey, Network
from rolemesh.errors import NotAllowed, NotAuthenticated
from rolemesh.names import Alias
from rolemesh.relay.access import Access
from rolemesh.runtime.keys import ANYONE, KeyRing, digest_of

KEY = ClientKey(name="ci", digest=digest_of("secret"), roles=frozenset({Alias("coder")}))


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))


def identify(access: Access, peer: str = "127.0.0.1", **fields: str) -> str:
    sent = {name.replace("_", "-"): value for name, value in fields.items()}
    return access.identify(peer, sent.get).name


LOCAL = Access(KeyRing(()), None, local_only=True)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"host": "localhost"},
        {"host": "localhost:8000"},
        {"host": "LOCALHOST"},
        {"host": "127.0.0.1:8000"},
        {"host": "127.9.9.9"},
        {"host": "[::1]:8000"},
        {"host": socket.gethostname()},
        {"host": "localhost", "origin": "http://localhost:3000"},
        {"host": "localhost", "origin": "https://127.0.0.1"},
    ],
)
def test_without_keys_whoever_names_this_machine_is_served(fields: dict[str, str]) -> None:
    assert identify(LOCAL, **fields) == ANYONE.name


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "rebound.example"},
        {"host": "rebound.example:8000"},
        {"host": "localhost.evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "10.0.0.1"},
        {"host": "[::2]"},
        {"host": "[::1"},
        {"host": "user@evil.example"},
        {"host": "localhost", "origin": "http://evil.example"},
        {"host": "localhost", "origin": "null"},
        {"host": "localhost", "origin": "http://[::1"},
        {"host": "localhost", "origin": "http://localhost, http://evil.example"},
    ],
)
def test_without_keys_a_web_page_from_elsewhere_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(NotAllowed, match="header names another machine"):
        identify(LOCAL, **fields)


def test_with_keys_any_name_will_do() -> None:
    access = Access(KeyRing((KEY,)), None, local_only=False)
    assert identify(access, host="gw.example", authorization="Bearer secret") == "ci"
    with pytest.raises(NotAuthenticated):
        identify(access, host="localhost")


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        ("10.0.0.7", True),
        ("10.0.1.7", False),
        ("::ffff:10.0.0.7", True),
        ("::ffff:10.0.1.7", False),
        ("fd00::1", True),
        ("fd01::1", False),
        ("fe80::1%eth0", True),
        ("unix", False),
        ("", False),
    ],
)
def test_only_listed_networks_may_call(peer: str, allowed: bool) -> None:
    access = Access(
        KeyRing(()), networks("10.0.0.0/24", "fd00::/16", "fe80::/64"), local_only=False
    )
    if allowed:
        assert identify(access, peer) == ANYONE.name
    else:
        with pytest.raises(NotAllowed, match="outside the networks"):
            identify(access, peer)


def test_an_empty_list_of_networks_lets_nobody_in() -> None:
    with pytest.raises(NotAllowed):
        identify(Access(KeyRing(()), (), local_only=False))


def test_the_address_is_checked_before_the_key() -> None:
    access = Access(KeyRing((KEY,)), networks("10.0.0.0/24"), local_only=False)
    with pytest.raises(NotAllowed):
        identify(access, "10.1.0.1", authorization="Bearer secret")


@pytest.mark.parametrize("peer", ["10.0.0.7", "::ffff:10.0.0.7", "192.168.1.1"])
def test_without_keys_nobody_on_another_machine_is_served(peer: str) -> None:
    with pytest.raises(NotAllowed, match="only callers on this machine"):
        identify(LOCAL, peer, host="localhost")


@pytest.mark.parametrize("origins", [("http://chat.example",), ("*",)])
def test_a_page_that_may_read_replies_is_no_foreign_one(origins: tuple[str, ...]) -> None:
    access = Access(KeyRing(()), None, local_only=True, origins=origins)
    assert identify(access, host="localhost", origin="http://chat.example") == ANYONE.name
    with pytest.raises(NotAllowed, match="Host"):
        identify(access, host="rebound.example", origin="http://chat.example")
    if origins != ("*",):
        with pytest.raises(NotAllowed, match="Origin"):
            identify(access, host="localhost", origin="http://evil.example")
