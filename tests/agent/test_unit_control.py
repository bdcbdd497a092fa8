"""What every UnitControl promises: the child supervisor and systemd alike."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import pytest

from rolemesh.agent.child_supervisor import ChildSupervisor
from rolemesh.agent.child_unit import Limits
from rolemesh.agent.systemd_units import SystemdUnits, unit_name
from rolemesh.agent.unit_control import ActiveState, UnitControl, UnitStatus
from rolemesh.errors import UnitFailed
from rolemesh.names import InstanceName
from tests.fakes.systemd_manager import FakeHost, Script, fake_systemd
from tests.lab.poll import eventually

PROGRAM = Path(__file__).parents[1] / "fakes" / "unit_program.py"
GPU0, GPU1 = InstanceName("gpu0"), InstanceName("gpu1")


class Units(Protocol):
    """Units whose next starts come to what the test says."""

    @property
    def control(self) -> UnitControl: ...

    def will_serve(self) -> None: ...

    def will_serve_once_told(self) -> Callable[[], None]: ...

    def will_fail(self, text: str) -> None: ...

    def will_fail_and_try_again(self, text: str) -> None: ...

    async def crash(self) -> None: ...


class ChildUnits:
    """Real processes."""

    def __init__(self, folder: Path, control: ChildSupervisor) -> None:
        self.control = control
        self._go = folder / "go"
        self._does: tuple[str, ...] = ()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, folder: Path) -> AsyncIterator[Units]:
        def argv(_: InstanceName) -> tuple[str, ...]:
            return (sys.executable, str(PROGRAM), *children._does)

        control = ChildSupervisor(
            directory=folder, argv_of=argv, limits=Limits(first_backoff_s=0.05)
        )
        children = cls(folder, control)
        children.will_serve()
        async with control:
            yield children

    def will_serve(self) -> None:
        self._does = ("status:serving", "ready", "sleep")

    def will_serve_once_told(self) -> Callable[[], None]:
        self._does = ("status:loading", f"wait:{self._go}", "status:serving", "ready", "sleep")
        return self._go.touch

    def will_fail(self, text: str) -> None:
        self._does = (f"status:{text}", "exit:78")

    def will_fail_and_try_again(self, text: str) -> None:
        self._does = (f"status:{text}", "exit:1")

    async def crash(self) -> None:
        pid = self.control.statuses()[GPU0].main_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)


class SystemdScripts:
    """systemd's states on a real bus."""

    def __init__(self, host: FakeHost, control: SystemdUnits) -> None:
        self.control = control
        self._host = host

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, folder: Path) -> AsyncIterator[Units]:
        async with fake_systemd(folder) as host, SystemdUnits(address=host.bus.address) as control:
            yield cls(host, control)

    def _set(self, script: Script) -> None:
        self._host.systemd.scripts = {unit_name(each): script for each in (GPU0, GPU1)}

    def will_serve(self) -> None:
        self._set(Script.at_once())

    def will_serve_once_told(self) -> Callable[[], None]:
        script = Script()
        self._set(script)
        return script.go.set

    def will_fail(self, text: str) -> None:
        self._set(Script.at_once(result="exit-code", status_text=text))

    def will_fail_and_try_again(self, text: str) -> None:
        self._set(Script.at_once(result="exit-code", status_text=text, tries_again=True))

    async def crash(self) -> None:
        await self._host.systemd.crash(unit_name(GPU0))


Opener = Callable[[Path], AbstractAsyncContextManager[Units]]


@pytest.fixture(params=[ChildUnits.open, SystemdScripts.open], ids=["child", "systemd"])
async def units(request: pytest.FixtureRequest, short_path: Path) -> AsyncIterator[Units]:
    opener: Opener = request.param
    async with opener(short_path) as opened:
        yield opened


@pytest.fixture
def seen(units: Units) -> list[UnitStatus]:
    changes: list[UnitStatus] = []
    units.control.subscribe(changes.append)
    return changes


def status(units: Units, instance: InstanceName = GPU0) -> UnitStatus:
    return units.control.statuses()[instance]


async def becomes(units: Units, active: ActiveState) -> UnitStatus:
    def reached() -> bool:
        found = units.control.statuses().get(GPU0)
        return found is not None and found.active is active

    await eventually(reached, what=f"gpu0 is {active}")
    return status(units)


async def failure(units: Units) -> UnitFailed:
    with pytest.raises(UnitFailed) as caught:
        await units.control.start(GPU0)
    return caught.value


async def test_nothing_is_known_of_what_never_ran(units: Units) -> None:
    await units.control.stop(GPU0)
    await units.control.reset_failed(GPU0)
    assert GPU1 not in units.control.statuses()
    assert GPU0 not in units.control.statuses()


async def test_a_start_returns_once_the_unit_is_active(
    units: Units, seen: list[UnitStatus]
) -> None:
    go = units.will_serve_once_told()
    start = asyncio.gather(units.control.start(GPU0))
    await eventually(lambda: seen and seen[-1].status_text == "loading", what="loading")
    assert status(units).active is ActiveState.ACTIVATING
    assert not start.done()
    go()
    await start
    assert (status(units).active, status(units).result) == (ActiveState.ACTIVE, "success")
    assert (status(units).main_pid, status(units).restarts) == (seen[0].main_pid, 0)
    await eventually(lambda: status(units).status_text == "serving", what="serving")


async def test_a_start_of_what_is_active_has_no_effect(units: Units) -> None:
    await units.control.start(GPU0)
    pid = status(units).main_pid
    await units.control.start(GPU0)
    assert status(units).main_pid == pid


async def test_two_starts_are_one(units: Units) -> None:
    go = units.will_serve_once_told()
    starts = asyncio.gather(units.control.start(GPU0), units.control.start(GPU0))
    pid = (await becomes(units, ActiveState.ACTIVATING)).main_pid
    go()
    await starts
    assert status(units).main_pid == pid


async def test_a_cancelled_start_goes_on(units: Units) -> None:
    go = units.will_serve_once_told()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(units.control.start(GPU0), 0.2)
    go()
    await becomes(units, ActiveState.ACTIVE)


async def test_a_failed_start_says_why_and_the_unit_is_failed_until_that_is_forgotten(
    units: Units,
) -> None:
    units.will_fail("no such model")
    error = await failure(units)
    assert (error.instance, error.result, error.status_text) == (
        *(GPU0, "exit-code"),
        "no such model",
    )
    found = await becomes(units, ActiveState.FAILED)
    assert (found.main_pid, found.result) == (None, "exit-code")
    await units.control.stop(GPU0)
    assert status(units).active is ActiveState.FAILED
    await units.control.reset_failed(GPU0)
    assert (status(units).active, status(units).result) == (ActiveState.INACTIVE, "success")


async def test_a_start_does_not_wait_for_an_automatic_restart(units: Units) -> None:
    units.will_fail_and_try_again("bad luck")
    assert (await failure(units)).status_text == "bad luck"
    units.will_serve()
    await units.control.start(GPU0)
    assert status(units).active is ActiveState.ACTIVE


async def test_a_stop_is_no_failure(units: Units) -> None:
    await units.control.start(GPU0)
    await units.control.stop(GPU0)
    found = status(units)
    assert (found.active, found.result, found.main_pid) == (ActiveState.INACTIVE, "success", None)


async def test_a_stop_ends_a_start(units: Units) -> None:
    _ = units.will_serve_once_told()
    start = asyncio.gather(units.control.start(GPU0), return_exceptions=True)
    await becomes(units, ActiveState.ACTIVATING)
    await units.control.stop(GPU0)
    (error,) = await start
    assert isinstance(error, UnitFailed)
    assert (error.result, error.status_text) == ("canceled", "stopped before it was ready")
    assert status(units).active is ActiveState.INACTIVE


async def test_a_restart_is_another_process_and_no_automatic_one(units: Units) -> None:
    await units.control.start(GPU0)
    pid = status(units).main_pid
    await units.control.restart(GPU0)
    assert status(units).active is ActiveState.ACTIVE
    assert status(units).main_pid != pid
    assert status(units).restarts == 0


async def test_a_restart_starts_what_is_stopped(units: Units) -> None:
    await units.control.restart(GPU0)
    assert status(units).active is ActiveState.ACTIVE


async def test_a_crash_is_told_and_mended(units: Units, seen: list[UnitStatus]) -> None:
    await units.control.start(GPU0)
    pid = status(units).main_pid
    await units.crash()
    await eventually(lambda: status(units).restarts == 1, what="restarted")
    assert (await becomes(units, ActiveState.ACTIVE)).main_pid != pid
    assert seen[-1] == status(units)


async def test_units_are_told_apart(units: Units, seen: list[UnitStatus]) -> None:
    await asyncio.gather(units.control.start(GPU0), units.control.start(GPU1))
    await units.control.stop(GPU1)
    assert status(units).active is ActiveState.ACTIVE
    assert status(units, GPU1).active is ActiveState.INACTIVE
    assert {each.instance for each in seen} == {GPU0, GPU1}
