"""Units run by systemd: a fake manager on a real bus."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rolemesh.agent import systemd_units
from rolemesh.agent.systemd_units import SystemdUnits, instance_of, unit_name
from rolemesh.agent.unit_control import ActiveState, UnitStatus
from rolemesh.errors import NodeError, StartError, UnitFailed, UnitStuck
from rolemesh.names import InstanceName
from tests.fakes.systemd_manager import FakeHost, FakeSystemd, Script, fake_systemd
from tests.lab.poll import eventually

GPU0, GPU1 = InstanceName("gpu0"), InstanceName("gpu1")
UNIT0, UNIT1 = unit_name(GPU0), unit_name(GPU1)


class Stage:
    """Units on a fake host; `seen` are all status changes."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.systemd: FakeSystemd = host.systemd
        self.control = SystemdUnits(address=host.bus.address)
        self.seen: list[UnitStatus] = []
        self.control.subscribe(self.seen.append)

    def status(self, instance: InstanceName = GPU0) -> UnitStatus:
        return self.control.statuses()[instance]

    def asked(self, method: str) -> list[tuple[str, ...]]:
        return [call for call in self.systemd.calls if call[0] == method]

    async def becomes(self, active: ActiveState, instance: InstanceName = GPU0) -> UnitStatus:
        def reached() -> bool:
            status = self.control.statuses().get(instance)
            return status is not None and status.active is active

        await eventually(reached, what=f"{instance} is {active}")
        return self.status(instance)


@asynccontextmanager
async def staged(host: FakeHost) -> AsyncIterator[Stage]:
    stage = Stage(host)
    async with stage.control:
        yield stage


@pytest.fixture
async def host(short_path: Path) -> AsyncIterator[FakeHost]:
    async with fake_systemd(short_path) as opened:
        yield opened


@pytest.fixture
async def stage(host: FakeHost) -> AsyncIterator[Stage]:
    async with staged(host) as opened:
        yield opened


# --- starts and stops -----------------------------------------------------------------------


async def test_a_job_that_ends_before_its_reply_is_waited_for_all_the_same(stage: Stage) -> None:
    stage.systemd.ends_first = True
    await stage.control.start(GPU0)
    assert stage.status().active is ActiveState.ACTIVE
    await stage.control.stop(GPU0)
    assert stage.status().active is ActiveState.INACTIVE


async def test_what_cannot_be_killed_is_named_until_it_is_gone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd_units, "STUCK_LOOK_S", 0.05)
    await stage.control.start(GPU0)
    stage.systemd.unkillable[UNIT0] = [4712, 4711]
    with pytest.raises(UnitStuck) as caught:
        await stage.control.stop(GPU0)
    assert caught.value.pids == (4711, 4712)
    status = stage.status()
    assert (status.active, status.stuck_pids) == (ActiveState.FAILED, (4711, 4712))
    asked = len(stage.asked("GetUnitProcesses"))
    await eventually(
        lambda: len(stage.asked("GetUnitProcesses")) > asked + 2, what="looked at again"
    )
    stage.systemd.unkillable[UNIT0] = [4712]
    await eventually(lambda: stage.status().stuck_pids == (4712,), what="one is gone")
    stage.systemd.unkillable.clear()
    await eventually(lambda: stage.seen[-1].stuck_pids == (), what="all are gone")
    await stage.control.stop(GPU0)


async def test_a_crash_that_leaves_what_cannot_be_killed_shows_too(stage: Stage) -> None:
    await stage.control.start(GPU0)
    assert stage.asked("GetUnitProcesses") == []
    stage.systemd.unkillable[UNIT0] = [4711]
    await stage.systemd.become(UNIT0, active="failed", sub="failed", MainPID=0, Result="watchdog")
    assert (await stage.becomes(ActiveState.FAILED)).stuck_pids == (4711,)


async def test_that_processes_are_not_told_of_is_no_obstacle(stage: Stage) -> None:
    stage.systemd.refuses["GetUnitProcesses"] = "org.freedesktop.DBus.Error.AccessDenied"
    await stage.control.start(GPU0)
    await stage.systemd.become(UNIT0, active="failed", sub="failed", MainPID=0, Result="watchdog")
    assert (await stage.becomes(ActiveState.FAILED)).stuck_pids == ()
    await stage.control.stop(GPU0)


async def test_a_start_never_undoes_the_stop_of_somebody_else(stage: Stage) -> None:
    await stage.control.start(GPU0)
    stage.systemd.stops.clear()
    stop = asyncio.gather(stage.control.stop(GPU0))
    await stage.becomes(ActiveState.DEACTIVATING)
    for start in (stage.control.start, stage.control.restart):
        with pytest.raises(NodeError, match="somebody else is stopping it"):
            await start(GPU0)
    stage.systemd.stops.set()
    await stop
    assert stage.status().active is ActiveState.INACTIVE


async def test_the_start_of_an_active_unit_has_no_effect(stage: Stage) -> None:
    await stage.control.start(GPU0)
    pid = stage.status().main_pid
    await stage.control.start(GPU0)
    assert stage.status().main_pid == pid


async def test_a_start_that_another_one_stops_is_canceled(stage: Stage) -> None:
    stage.systemd.scripts[UNIT0] = Script()
    start = asyncio.gather(stage.control.start(GPU0), return_exceptions=True)
    await stage.becomes(ActiveState.ACTIVATING)
    await stage.control.stop(GPU0)
    (error,) = await start
    assert isinstance(error, UnitFailed)
    assert error.result == "canceled"


async def test_a_start_does_not_wait_for_systemds_own_restart(stage: Stage) -> None:
    stage.systemd.load(UNIT0, active="activating", sub="auto-restart", Result="exit-code")
    await stage.control.start(GPU0)
    assert stage.asked("RestartUnit")
    assert stage.status().active is ActiveState.ACTIVE


async def test_a_failure_names_systemds_result_even_if_the_unit_starts_again(
    stage: Stage,
) -> None:
    stage.systemd.scripts[UNIT0] = Script.at_once(
        result="exit-code", status_text="no such model", tries_again=True
    )
    with pytest.raises(UnitFailed) as caught:
        await stage.control.start(GPU0)
    assert (caught.value.result, caught.value.status_text) == ("exit-code", "no such model")
    assert stage.status().active is ActiveState.ACTIVATING


async def test_a_unit_without_a_template_is_an_error_that_says_so(stage: Stage) -> None:
    stage.systemd.refuses["StartUnit"] = "org.freedesktop.systemd1.BadUnitSetting"
    with pytest.raises(NodeError, match=r"systemd refuses StartUnit rolemesh-llama@gpu0\.service"):
        await stage.control.start(GPU0)


@pytest.mark.parametrize("name", ["AccessDenied", "InteractiveAuthorizationRequired"])
@pytest.mark.parametrize("method", ["StartUnit", "StopUnit", "ResetFailedUnit"])
async def test_a_refusal_of_polkit_names_the_rule_and_its_package(
    stage: Stage, name: str, method: str
) -> None:
    stage.systemd.refuses[method] = f"org.freedesktop.DBus.Error.{name}"
    call = {
        "StartUnit": stage.control.start,
        "StopUnit": stage.control.stop,
        "ResetFailedUnit": stage.control.reset_failed,
    }[method]
    with pytest.raises(
        NodeError, match=r"50-rolemesh-node-agent\.rules .* the package rolemesh-node"
    ):
        await call(GPU0)


async def test_a_stop_that_systemd_gives_up_is_an_error(stage: Stage) -> None:
    stage.systemd.refuses["StopUnit"] = "org.freedesktop.systemd1.ShuttingDown"
    with pytest.raises(NodeError, match="ShuttingDown"):
        await stage.control.stop(GPU0)


async def test_a_stop_that_somebody_else_undoes_is_an_error(stage: Stage) -> None:
    await stage.control.start(GPU0)
    stage.systemd.stops.clear()
    stop = asyncio.gather(stage.control.stop(GPU0), return_exceptions=True)
    await stage.becomes(ActiveState.DEACTIVATING)
    await stage.systemd.start_by_hand(UNIT0)
    (error,) = await stop
    assert "somebody else started it again" in str(error)


async def test_a_failure_without_words_points_to_the_journal(stage: Stage) -> None:
    stage.systemd.scripts[UNIT0] = Script.at_once(result="resources", status_text="")
    with pytest.raises(UnitFailed) as caught:
        await stage.control.start(GPU0)
    assert caught.value.status_text == f"resources; see journalctl -u {UNIT0}"


# --- what others do -------------------------------------------------------------------------


async def test_what_runs_already_is_found(host: FakeHost) -> None:
    host.systemd.load(UNIT0, active="active", sub="running", MainPID=7, StatusText="serving x")
    host.systemd.load("rolemesh-llama@nonsense.service", active="active")
    host.systemd.load("rolemesh-llama@gpu7.service")
    host.systemd.load("dbus.service", active="active")
    async with staged(host) as stage:
        assert stage.control.statuses() == {
            GPU0: UnitStatus(
                instance=GPU0,
                active=ActiveState.ACTIVE,
                main_pid=7,
                status_text="serving x",
                result="success",
                restarts=0,
            )
        }


async def test_leaving_stops_nothing(host: FakeHost) -> None:
    async with staged(host) as stage:
        await stage.control.start(GPU0)
    assert host.systemd.units[UNIT0].active == "active"


async def test_a_unit_started_and_stopped_by_hand_is_followed(stage: Stage) -> None:
    await stage.systemd.become(UNIT1, active="activating", sub="start", MainPID=9)
    assert (await stage.becomes(ActiveState.ACTIVATING, GPU1)).main_pid == 9
    await stage.systemd.become(UNIT1, active="active", sub="running", StatusText="serving")
    assert (await stage.becomes(ActiveState.ACTIVE, GPU1)).status_text == "serving"
    await stage.systemd.unload(UNIT1)
    status = await stage.becomes(ActiveState.INACTIVE, GPU1)
    assert (status.main_pid, status.status_text) == (None, "")


async def test_a_burst_of_changes_is_read_once_or_twice(stage: Stage) -> None:
    await stage.control.start(GPU0)
    stage.systemd.calls.clear()
    for number in range(50):
        await stage.systemd.become(UNIT0, StatusText=f"step {number}")
    await eventually(lambda: stage.status().status_text == "step 49", what="the last step is seen")
    assert len(stage.asked("GetUnit")) < 25


async def test_a_unit_that_is_only_looked_at_stays_unknown_and_is_not_loaded_by_us(
    stage: Stage,
) -> None:
    await stage.systemd.become(UNIT1)
    await stage.systemd.unload(UNIT1)
    await stage.control.start(GPU0)
    await stage.control.stop(GPU0)
    await eventually(lambda: stage.asked("GetUnit")[-1], what="read")
    assert GPU1 not in stage.control.statuses()
    assert stage.systemd.loads == 0


@pytest.mark.parametrize(
    ("active", "pid", "expected"),
    [
        ("reloading", 5, ActiveState.ACTIVE),
        ("refreshing", 5, ActiveState.ACTIVE),
        ("maintenance", 0, ActiveState.INACTIVE),
        ("invented-later", 5, ActiveState.ACTIVE),
        ("invented-later", 0, ActiveState.INACTIVE),
    ],
)
async def test_states_of_other_versions_of_systemd_have_a_meaning(
    stage: Stage, active: str, pid: int, expected: ActiveState
) -> None:
    await stage.control.start(GPU0)
    await stage.systemd.become(UNIT0, active=active, MainPID=pid, StatusText="read")
    await eventually(lambda: stage.status().status_text == "read", what="it is read")
    assert stage.status().active is expected


async def test_what_an_admin_enables_and_disables_shows(stage: Stage) -> None:
    await stage.control.start(GPU0)
    assert not stage.status().enabled
    for state, enabled in (("enabled", True), ("disabled", False)):
        await stage.systemd.change_files(UNIT0, state)
        await eventually(lambda: stage.status().enabled is enabled, what=state)  # noqa: B023


# --- the bus and PID 1 come and go ----------------------------------------------------------


async def test_a_lost_bus_is_found_again_and_so_is_what_happened_meanwhile(stage: Stage) -> None:
    await stage.control.start(GPU0)
    await stage.host.bus.kill()
    await stage.systemd.disconnect()
    stage.systemd.load(UNIT1, active="active", sub="running", MainPID=3)
    del stage.systemd.units[UNIT0]
    await stage.host.bus.start()
    await stage.systemd.connect(stage.host.bus.address)
    await stage.becomes(ActiveState.ACTIVE, GPU1)
    await stage.becomes(ActiveState.INACTIVE, GPU0)
    await stage.systemd.become(UNIT1, active="failed", sub="failed", Result="watchdog")
    assert (await stage.becomes(ActiveState.FAILED, GPU1)).result == "watchdog"


async def test_systemd_executed_anew_is_subscribed_to_again(stage: Stage) -> None:
    await stage.control.start(GPU0)
    await stage.host.reexec()
    await eventually(lambda: len(stage.asked("Subscribe")) == 2, what="subscribed again")
    await stage.control.stop(GPU0)
    await stage.control.start(GPU0)
    assert stage.status().active is ActiveState.ACTIVE


@pytest.mark.parametrize("happens", ["restart_bus", "reexec"])
async def test_a_start_under_way_is_asked_for_again(stage: Stage, happens: str) -> None:
    script = stage.systemd.scripts[UNIT0] = Script()
    start = asyncio.gather(stage.control.start(GPU0))
    await stage.becomes(ActiveState.ACTIVATING)
    await getattr(stage.host, happens)()
    await eventually(lambda: len(stage.asked("StartUnit")) == 2, what="asked again")
    script.go.set()
    await start
    assert stage.status().active is ActiveState.ACTIVE


async def test_a_start_outlives_more_than_one_loss(stage: Stage) -> None:
    script = stage.systemd.scripts[UNIT0] = Script()
    start = asyncio.gather(stage.control.start(GPU0))
    for times in (1, 2, 3):
        await eventually(lambda: len(stage.asked("StartUnit")) == times, what="asked")  # noqa: B023
        await stage.host.reexec()
    script.go.set()
    await start
    assert stage.status().active is ActiveState.ACTIVE


async def test_systemd_that_goes_each_time_it_is_asked_is_given_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd_units, "_FIRST_PAUSE_S", 0.01)
    stage.systemd.refuses["StartUnit"] = "org.freedesktop.DBus.Error.NoReply"
    with pytest.raises(NodeError, match="systemd is not on the D-Bus system bus"):
        await stage.control.start(GPU0)
    assert len(stage.asked("StartUnit")) == 5


async def test_a_call_without_a_reply_is_made_again(stage: Stage) -> None:
    stage.systemd.silent.add("StartUnit")
    start = asyncio.gather(stage.control.start(GPU0))
    await eventually(lambda: stage.asked("StartUnit"), what="asked")
    stage.systemd.silent.clear()
    await stage.host.reexec()
    await start
    assert len(stage.asked("StartUnit")) == 2


async def test_a_call_while_systemd_is_away_ends_with_the_reason(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd_units, "CONNECTION_WAIT_S", 0.3)
    await stage.host.bus.kill()
    with pytest.raises(NodeError, match=r"systemd cannot be reached: .*D-Bus"):
        await stage.control.start(GPU0)
    await stage.host.bus.start()


async def test_without_a_bus_the_agent_does_not_start(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd_units, "CONNECTION_WAIT_S", 0.3)
    with pytest.raises(StartError, match="systemd cannot be reached: no connection"):
        await SystemdUnits(address=f"unix:path={short_path}/absent").__aenter__()


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "instance"),
    [
        ("rolemesh-llama@gpu0.service", "gpu0"),
        ("rolemesh-llama@gpu12-embed.service", "gpu12-embed"),
        ("rolemesh-llama@gpu0x.service", None),
        ("rolemesh-llama@.service", None),
        ("rolemesh-llama.target", None),
        ("dbus.service", None),
    ],
)
def test_an_instance_is_known_by_the_name_of_its_unit(unit: str, instance: Any) -> None:
    assert instance_of(unit) == instance
