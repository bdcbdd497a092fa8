"""The client of systemd's D-Bus interface, and the bus in all its moods."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from jeepney.io.asyncio import open_dbus_connection

from rolemesh.agent import systemd_bus
from rolemesh.agent.systemd_bus import SystemdBus, UnitReading, unit_of
from rolemesh.agent.systemd_errors import BusLost, NoSuchUnit
from rolemesh.errors import NodeError
from rolemesh.runtime.tasks import TaskScope
from tests.fakes.systemd_manager import FakeHost, FakeSystemd, Script, fake_systemd, path_of
from tests.lab.poll import eventually

UNIT = "rolemesh-llama@gpu0-embed.service"


class Stage:
    """A connection to a fake systemd; `changed` are the units it was told of."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.systemd: FakeSystemd = host.systemd
        self.changed: list[str] = []
        self.bus: SystemdBus


@contextlib.asynccontextmanager
async def connected(host: FakeHost) -> AsyncIterator[Stage]:
    stage = Stage(host)
    async with TaskScope() as scope:
        stage.bus = await SystemdBus.connect(host.bus.address, stage.changed.append)
        _ = scope.start(stage.bus.receive(), name="receive")
        await stage.bus.subscribe()
        yield stage
        await stage.bus.close()


@pytest.fixture
async def stage(short_path: Path) -> AsyncIterator[Stage]:
    async with fake_systemd(short_path) as host, connected(host) as opened:
        yield opened


async def test_a_unit_is_read(stage: Stage) -> None:
    stage.systemd.load(
        UNIT, active="active", sub="running", MainPID=7, StatusText="serving", NRestarts=2
    )
    assert await stage.bus.read_unit(UNIT) == UnitReading(
        active_state="active",
        sub_state="running",
        main_pid=7,
        status_text="serving",
        result="success",
        restarts=2,
        unit_file_state="disabled",
    )


async def test_a_unit_that_is_not_loaded_is_none_and_stays_so(stage: Stage) -> None:
    assert await stage.bus.read_unit(UNIT) is None
    with pytest.raises(NoSuchUnit):
        await stage.bus.reset_failed(UNIT)
    with pytest.raises(NoSuchUnit):
        await stage.bus.run_job("StopUnit", UNIT)
    assert stage.systemd.loads == 0


async def test_a_reading_is_no_mixture_of_two_moments(stage: Stage) -> None:
    unit = stage.systemd.load(UNIT, active="active", sub="running", MainPID=7)

    def die_after_the_first_look() -> None:
        if unit.active == "active":
            unit.set("failed", "failed", MainPID=0, Result="signal")

    stage.systemd.after_get = die_after_the_first_look
    reading = await stage.bus.read_unit(UNIT)
    assert reading is not None
    assert (reading.active_state, reading.sub_state) == ("failed", "failed")
    assert (reading.main_pid, reading.result) == (0, "signal")


async def test_units_are_listed_by_a_pattern(stage: Stage) -> None:
    stage.systemd.load(UNIT)
    stage.systemd.load("dbus.service")
    assert await stage.bus.list_units("rolemesh-llama@*.service") == (UNIT,)


@pytest.mark.parametrize("ends_first", [False, True])
async def test_a_job_is_waited_for_whichever_comes_first(stage: Stage, ends_first: bool) -> None:
    stage.systemd.ends_first = ends_first
    assert await stage.bus.run_job("StartUnit", UNIT) == "done"
    stage.systemd.scripts[UNIT] = Script.at_once(result="timeout")
    assert await stage.bus.run_job("RestartUnit", UNIT) == "failed"


async def test_all_who_wait_for_one_job_hear_of_its_end(stage: Stage) -> None:
    script = stage.systemd.scripts[UNIT] = Script()
    jobs = asyncio.gather(*(stage.bus.run_job("StartUnit", UNIT) for _ in range(3)))
    await eventually(lambda: len(stage.systemd.calls) >= 3, what="all asked")
    script.go.set()
    assert await jobs == ["done", "done", "done"]


async def test_another_job_of_the_same_unit_is_not_ours(stage: Stage) -> None:
    stage.systemd.scripts[UNIT] = Script()
    start = asyncio.gather(stage.bus.run_job("StartUnit", UNIT))
    await eventually(lambda: UNIT in stage.changed, what="it starts")
    assert await stage.bus.run_job("StopUnit", UNIT) == "done"
    (result,) = await start
    assert result == "canceled"


async def test_changes_name_the_unit(stage: Stage) -> None:
    await stage.systemd.become(UNIT, active="active")
    await stage.systemd.unload(UNIT)
    await eventually(lambda: len(stage.changed) == 6, what="all were told")
    assert set(stage.changed) == {UNIT}


async def test_who_is_not_systemd_is_not_believed(stage: Stage) -> None:
    forger = await open_dbus_connection(stage.host.bus.address)
    await stage.systemd.forge(forger, stage.bus._connection.unique_name, "UnitNew")
    await forger.close()
    await stage.systemd.become(UNIT)
    await eventually(lambda: UNIT in stage.changed, what="systemd's own came")
    assert set(stage.changed) == {UNIT}


async def test_a_second_subscription_is_fine(stage: Stage) -> None:
    await stage.bus.subscribe()


# --- ends -----------------------------------------------------------------------------------


async def lost_while_waiting(stage: Stage) -> str:
    """Return what somebody is told whose start is under way at the end of the connection."""
    with pytest.raises(BusLost) as caught:
        await stage.bus.run_job("StartUnit", UNIT)
    assert stage.bus.is_lost
    assert await stage.bus.lost()
    with pytest.raises(BusLost):
        await stage.bus.list_units("*")
    return str(caught.value)


async def test_a_bus_that_goes_is_told_to_who_waits(stage: Stage) -> None:
    stage.systemd.scripts[UNIT] = Script()
    waiting = asyncio.gather(lost_while_waiting(stage))
    await eventually(lambda: UNIT in stage.changed, what="it starts")
    await stage.host.bus.kill()
    (told,) = await waiting
    # It tells of its other clients' end if it has the time.
    assert told in {
        "the D-Bus system bus closed the connection",
        "systemd left the D-Bus system bus, or came anew",
    }
    await stage.host.bus.start()


async def test_a_systemd_that_comes_anew_is_told_to_who_waits(stage: Stage) -> None:
    stage.systemd.scripts[UNIT] = Script()
    waiting = asyncio.gather(lost_while_waiting(stage))
    await eventually(lambda: UNIT in stage.changed, what="it starts")
    await stage.host.reexec()
    (told,) = await waiting
    assert told == "systemd left the D-Bus system bus, or came anew"


async def test_a_systemd_that_says_nothing_is_given_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd_bus, "CALL_TIMEOUT_S", 0.1)
    stage.systemd.silent.add("StartUnit")
    assert "systemd does not answer within 0.1 s" in await lost_while_waiting(stage)


async def test_a_bus_without_systemd_is_no_connection(short_path: Path) -> None:
    async with fake_systemd(short_path) as host:
        await host.systemd.disconnect()
        with pytest.raises(BusLost, match="systemd is not on the D-Bus system bus"):
            await subscribe_to(host)


async def subscribe_to(host: FakeHost) -> None:
    bus = await SystemdBus.connect(host.bus.address, lambda _: None)
    receiving = asyncio.gather(bus.receive())
    try:
        await bus.subscribe()
    finally:
        await bus.close()
        await receiving


async def test_no_bus_at_all_is_no_connection(short_path: Path) -> None:
    with pytest.raises(BusLost, match="no connection to the D-Bus system bus"):
        await SystemdBus.connect(f"unix:path={short_path}/absent", lambda _: None)


# --- errors and names -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("org.freedesktop.systemd1.NoSuchUnit", NoSuchUnit, "refused"),
        ("org.freedesktop.DBus.Error.NoReply", BusLost, "systemd is not on the D-Bus"),
        ("org.freedesktop.DBus.Error.AccessDenied", NodeError, r"refuses StartUnit .*/rules\.d/"),
        ("org.freedesktop.systemd1.UnitMasked", NodeError, r"refused .*UnitMasked"),
    ],
)
async def test_errors_are_translated(stage: Stage, name: str, kind: Any, text: str) -> None:
    stage.systemd.refuses["StartUnit"] = name
    with pytest.raises(kind, match=text):
        await stage.bus.run_job("StartUnit", UNIT)


def test_a_unit_is_known_by_its_object_path() -> None:
    path = "/org/freedesktop/systemd1/unit/rolemesh_2dllama_40gpu0_2dembed_2eservice"
    assert unit_of(path) == UNIT
    assert path_of(UNIT) == path
