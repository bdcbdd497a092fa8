import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rolemesh.runtime.notify import Notifier, watchdog_interval_s
from tests.lab.notify import NotifySocket


@pytest.fixture
def notifier(notify_socket: NotifySocket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notifier]:
    for name, value in notify_socket.environment.items():
        monkeypatch.setenv(name, value)
    made = Notifier()
    yield made
    made.close()


async def test_every_word_reaches_the_manager(
    notifier: Notifier, notify_socket: NotifySocket
) -> None:
    before = time.monotonic_ns() // 1000
    notifier.ready("serving")
    notifier.reloading()
    notifier.extend_timeout(1.5)
    notifier.watchdog()
    notifier.watchdog_trigger()
    notifier.stopping("bye")
    notify_socket.read()
    sent = [dict(each.fields) for each in notify_socket.received]
    assert before <= int(sent[1].pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
    assert sent == [
        {"READY": "1", "STATUS": "serving"},
        {"RELOADING": "1"},
        {"EXTEND_TIMEOUT_USEC": "1500000"},
        {"WATCHDOG": "1"},
        {"WATCHDOG": "trigger"},
        {"STOPPING": "1", "STATUS": "bye"},
    ]


async def test_what_is_held_back_is_said_later_and_in_order(
    notifier: Notifier, notify_socket: NotifySocket
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        notifier.hold()
        notifier.store("http-a", listener.fileno())
        notifier.status("soon")
        notify_socket.read()
        assert notify_socket.received == []
        notifier.let_go()
        notifier.ready("serving")
    notify_socket.read()
    assert [dict(each.fields) for each in notify_socket.received] == [
        {"FDSTORE": "1", "FDNAME": "http-a"},
        {"STATUS": "soon"},
        {"READY": "1", "STATUS": "serving"},
    ]
    assert list(notify_socket.stored) == ["http-a"]


async def test_who_hands_over_says_who_is_next_and_nothing_more(
    notifier: Notifier, notify_socket: NotifySocket
) -> None:
    notifier.hand_over(7)
    notifier.ready("still here")
    notify_socket.read()
    assert [dict(each.fields) for each in notify_socket.received] == [
        {"MAINPID": "7", "READY": "1"}
    ]


async def test_a_status_is_sent_only_when_it_changed(
    notifier: Notifier, notify_socket: NotifySocket
) -> None:
    notifier.ready("one")
    for text in ("one", "two", "two", "one"):
        notifier.status(text)
    notify_socket.read()
    assert notify_socket.values("STATUS") == ["one", "two", "one"]


async def test_a_status_in_any_language_does_not_keep_ready_from_arriving(
    notifier: Notifier, notify_socket: NotifySocket
) -> None:
    notifier.ready("Größe 大 \udcff")
    notify_socket.read()
    assert [dict(each.fields) for each in notify_socket.received] == [
        {"READY": "1", "STATUS": "Größe 大 \\udcff"}
    ]


async def test_a_descriptor_is_kept_by_the_manager_until_it_is_told_to_close_it(
    notifier: Notifier, notify_socket: NotifySocket
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        notifier.store("http-x", listener.fileno())
    notify_socket.read()
    assert list(notify_socket.stored) == ["http-x"]
    socket.create_connection(address).close()  # the duplicate listens on
    notifier.unstore("http-x")
    notify_socket.read()
    assert notify_socket.stored == {}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


async def test_children_cannot_speak_in_the_daemons_name(notifier: Notifier) -> None:
    assert isinstance(notifier, Notifier)
    assert "NOTIFY_SOCKET" not in os.environ


def test_without_a_manager_every_call_is_silent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready("serving")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    Notifier().ready("serving")


def test_where_there_is_no_sdnotify_the_manager_hears_the_same(short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(short_path / "notify"))
        script = (
            "import sys; sys.modules['sdnotify'] = None\n"
            "from rolemesh.runtime.notify import Notifier; Notifier().ready('serving')"
        )
        environment = {**os.environ, "NOTIFY_SOCKET": str(short_path / "notify")}
        subprocess.run([sys.executable, "-c", script], env=environment, check=True)
        assert manager.recv(100) == b"READY=1\nSTATUS=serving"


def test_a_manager_may_listen_in_the_abstract_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # the kernel chooses a name
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + manager.getsockname()[1:].decode())
        made = Notifier()
        made.ready("serving")
        made.close()
        assert manager.recv(100) == b"READY=1\nSTATUS=serving"


@pytest.mark.parametrize(
    ("usec", "pid", "interval_s"),
    [
        ("3000000", "own", 1.5),
        ("3000000", "", 1.5),
        ("3000000", "1", None),
        ("0", "own", None),
        ("", "", None),
        ("soon", "own", None),
    ],
)
def test_the_watchdog_is_fed_at_half_its_time(
    usec: str, pid: str, interval_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert watchdog_interval_s() == interval_s
    assert "WATCHDOG_USEC" not in os.environ
