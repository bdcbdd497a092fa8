import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rolemesh.config.settings import Listen
from rolemesh.errors import ConfigError, StartError
from rolemesh.runtime import listeners as listeners_module
from rolemesh.runtime.fd_store import PassedSocket
from rolemesh.runtime.listeners import Listeners, bind, is_loopback
from rolemesh.runtime.notify import Notifier
from tests.lab.notify import NotifySocket
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


def stored(host: str = "127.0.0.1", name: str = "http-x") -> PassedSocket:
    return PassedSocket(name=name, socket=socket.create_server((host, 0)))


async def test_what_was_passed_is_kept_the_rest_is_bound_and_the_surplus_is_closed(
    notify_socket: NotifySocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(notify_socket.path))
    notifier, kept, gone = Notifier(), stored(), stored("127.0.0.3", "http-gone")
    port = kept.socket.getsockname()[1]
    listeners = Listeners(notifier, (kept, gone))
    await listeners.open(Listen(host=("127.0.0.1", "127.0.0.2"), port=port))
    try:
        names = [each.getsockname()[0] for each in listeners.sockets]
        assert (names, listeners.port) == (["127.0.0.1", "127.0.0.2"], port)
        assert listeners.sockets[0] is kept.socket
        assert gone.socket.fileno() == -1
        notify_socket.read()
        assert notify_socket.values("FDNAME") == ["http-gone", f"http-127.0.0.2-{port}"]
        assert list(notify_socket.stored) == [f"http-127.0.0.2-{port}"]
    finally:
        listeners.close()
        notifier.close()


async def test_the_socket_of_a_socket_unit_must_be_what_is_configured() -> None:
    passed = stored(name="rolemesh-gateway.socket")
    with passed.socket, pytest.raises(ConfigError, match="make ListenStream= and listen:"):
        await Listeners(Notifier(), (passed,)).open(Listen(port=free_port()))


async def test_a_change_binds_first_and_refuses_whole() -> None:
    listeners = Listeners(Notifier())
    await listeners.open(Listen(port=free_port()))
    before = listeners.sockets
    with socket.create_server(("127.0.0.2", 0)) as other:
        taken = Listen(host=("127.0.0.1", "127.0.0.2"), port=other.getsockname()[1])
        with pytest.raises(ConfigError, match="another program has it"):
            listeners.change(taken)
    assert listeners.sockets == before
    with pytest.raises(ConfigError, match="this daemon itself listens on that port: restart it"):
        listeners.change(Listen(host=("0.0.0.0",), port=listeners.port))
    listeners.change(Listen(port=free_port()))
    assert before[0] not in listeners.sockets
    before[0].close()
    listeners.close()


async def test_any_free_port_stays_the_same_while_nothing_changes() -> None:
    listeners = Listeners(Notifier())
    await listeners.open(Listen(port=0))
    before = listeners.sockets
    listeners.change(Listen(port=0))
    assert listeners.sockets == before
    listeners.close()


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (("127.0.0.1", 8000), "http-127.0.0.1-8000"),
        (("::1", 8000, 0, 0), "http-__1-8000"),
    ],
)
def test_a_stored_name_has_no_colon(address: tuple[object, ...], name: str) -> None:
    assert listeners_module._name_of(address) == name


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
