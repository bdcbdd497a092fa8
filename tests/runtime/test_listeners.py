import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rolemesh.config.settings import Listen
from rolemesh.errors import StartError
from rolemesh.runtime.listeners import bind, is_loopback
from tests.lab.processes import free_port


@contextmanager
def bound(listen: Listen) -> Iterator[list[socket.socket]]:
    sockets = bind(listen)
    try:
        yield sockets
    finally:
        for each in sockets:
            each.close()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("gw.example", False),
        ("", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_every_address_gets_a_listening_socket() -> None:
    with bound(Listen(host=("127.0.0.1", "127.0.0.2"), port=free_port())) as sockets:
        assert [each.getsockname()[0] for each in sockets] == ["127.0.0.1", "127.0.0.2"]
        for each in sockets:
            assert not each.getblocking()
            with socket.create_connection(each.getsockname()):
                pass


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6_leaves_the_ipv4_address_of_the_same_port_free() -> None:
    port = free_port()
    with bound(Listen(host=("::1", "127.0.0.1"), port=port)) as sockets:
        assert [each.family for each in sockets] == [socket.AF_INET6, socket.AF_INET]


def test_a_port_in_use_is_named_with_what_helps() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartError) as refused:
            bind(Listen(host=("127.0.0.1",), port=port))
    message = str(refused.value)
    for part in ("127.0.0.1", f"port {port}", "another program", f":{port}'", "--port"):
        assert part in message


def test_what_was_bound_is_given_back_when_another_address_fails() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.2", port)), pytest.raises(StartError):
        bind(Listen(host=("127.0.0.1", "127.0.0.2"), port=port))
    with socket.create_server(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("192.0.2.1", "no such address.*ip address.*--host"),
        ("no-such-host.invalid", "cannot listen on no-such-host.invalid: .*listen.host"),
    ],
)
def test_an_address_of_another_machine_is_named_with_what_helps(host: str, says: str) -> None:
    with pytest.raises(StartError, match=says):
        bind(Listen(host=(host,), port=free_port()))
