"""The life of a daemon, as its service manager sees it."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rolemesh.errors import ConfigError, Problem, Unavailable
from rolemesh.runtime.daemon import Lifecycle
from rolemesh.runtime.notify import Notifier
from tests.fakes import daemon_program
from tests.lab.notify import NotifySocket
from tests.lab.poll import eventually
from tests.lab.processes import Program

Start = Callable[..., Program]
ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def start(start_program: Start, notify_socket: NotifySocket, tmp_path: Path) -> Start:
    """Start the fake daemon: start("serve", WATCHDOG_USEC="...")."""
    (tmp_path / "reload").write_text("")

    def start(what: str, **environment: str) -> Program:
        return start_program(
            [sys.executable, daemon_program.__file__, what],
            {
                **notify_socket.environment,
                "RELOAD_FILE": str(tmp_path / "reload"),
                "PYTHONPATH": ROOT,
                **environment,
            },
        )

    return start


def words(notify_socket: NotifySocket) -> list[str]:
    """Return what was told, in order, without statuses."""
    names = ("READY", "RELOADING", "STOPPING")
    return [name for each in notify_socket.received for name in names if name in each.fields]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_daemon_says_ready_serves_and_ends_well(
    start: Start, notify_socket: NotifySocket, number: signal.Signals
) -> None:
    program = start("serve")
    ready = await notify_socket.ready()
    assert (ready.pid, ready.fields["STATUS"]) == (program.pid, "serving well")
    program.send(number)
    assert await program.end() == 0
    await program.line(f"{number.name} received: stopping")
    await program.line("tearing down")
    assert words(notify_socket) == ["READY", "STOPPING"]


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ("", None),
        ("refuse", "reload refused, the old configuration stays in force"),
        ("crash", "reload failed inside RoleMesh"),
    ],
)
async def test_ready_follows_every_reload_whatever_came_of_it(
    start: Start, notify_socket: NotifySocket, tmp_path: Path, wish: str, says: str | None
) -> None:
    """Without it `systemctl reload` hangs for ever."""
    program = start("serve")
    await notify_socket.ready()
    (tmp_path / "reload").write_text(wish)
    for count in (1, 2):
        program.send(signal.SIGHUP)
        told = ["READY", *["RELOADING", "READY"] * count]
        await eventually(lambda told=told: words(notify_socket) == told, what="reloaded")  # type: ignore[misc]
    reloading = [each for each in notify_socket.received if "RELOADING" in each.fields]
    assert all(int(each.fields["MONOTONIC_USEC"]) > 0 for each in reloading)
    assert await program.stop() == 0
    if says:
        await program.line(says)
    if wish == "refuse":
        await program.line("a.yaml:1: listen: expected one thing")
        await program.line("b.yaml:2: models: expected another")


async def test_who_asks_for_a_reload_learns_what_came_of_it() -> None:
    refusal = ConfigError((Problem(where="a.yaml:1", key="listen", message="no"),))
    outcomes = [None, refusal, ZeroDivisionError("a mistake"), None]
    lifecycle = Lifecycle(Notifier())

    async def reload() -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    async with asyncio.TaskGroup() as group:
        group.create_task(lifecycle.serve(reload))
        await lifecycle.reload()
        with pytest.raises(ConfigError, match="listen: no"):
            await lifecycle.reload()
        with pytest.raises(ZeroDivisionError):
            await lifecycle.reload()
        await lifecycle.reload()
        lifecycle._signals.put_nowait(signal.SIGTERM)
        with pytest.raises(Unavailable, match="stopping"):
            await lifecycle.reload()
    with pytest.raises(Unavailable, match="stopping"):
        await lifecycle.reload()
    assert outcomes == []


@pytest.mark.parametrize(
    ("what", "status", "says"),
    [
        ("refuse", 78, "a.yaml:1: listen: expected one thing"),
        ("cannot-start", 1, "the port is taken; choose another"),
        ("in-background", 1, "the port is taken; choose another"),
        ("crash", 1, "ZeroDivisionError"),
    ],
)
async def test_a_daemon_that_fails_says_why_and_with_what_status(
    start: Start, notify_socket: NotifySocket, what: str, status: int, says: str
) -> None:
    program = start(what)
    assert await program.end() == status
    await program.line(says)
    if what != "crash":
        assert "Traceback" not in "\n".join(program.lines())
        assert notify_socket.values("STATUS")[-1] == says
    if what != "in-background":
        assert words(notify_socket) == []


async def test_a_second_signal_ends_a_daemon_at_once(
    start: Start, notify_socket: NotifySocket
) -> None:
    program = start("slow-stop")
    await notify_socket.ready()
    program.send(signal.SIGTERM)
    await program.line("tearing down")
    program.send(signal.SIGHUP)  # no reason to hurry
    await asked_again(program, signal.SIGINT)
    assert program.status == 1
    await program.line("second SIGINT: not waiting any longer")


async def test_two_signals_at_once_are_one_wish(start: Start, notify_socket: NotifySocket) -> None:
    program = start("serve")
    await notify_socket.ready()
    program.send(signal.SIGTERM)
    program.send(signal.SIGINT)
    assert await program.end() == 0


async def test_a_watched_daemon_reports_being_alive(
    start: Start, notify_socket: NotifySocket
) -> None:
    program = start("serve", WATCHDOG_USEC="40000", WATCHDOG_PID="")
    await eventually(lambda: len(notify_socket.values("WATCHDOG")) >= 3, what="fed three times")
    assert set(notify_socket.values("WATCHDOG")) == {"1"}
    assert await program.stop() == 0


async def test_without_a_manager_a_daemon_serves_all_the_same(start_program: Start) -> None:
    environment = {"NOTIFY_SOCKET": "", "PYTHONPATH": ROOT, "RELOAD_FILE": os.devnull}
    program = start_program([sys.executable, daemon_program.__file__, "serve"], environment)
    await program.line("about to serve")
    program.send(signal.SIGTERM)
    await program.line("tearing down")
    assert await program.end() == 0


async def asked_again(program: Program, number: signal.Signals) -> None:
    """Signal until the program ends; what comes too soon after the first is no other wish."""

    def has_ended() -> bool:
        program.send(number)
        return program.status is not None

    await eventually(has_ended, what="ended by a later signal")
