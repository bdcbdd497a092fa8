"""A fleet while another process of its agent takes over, with units that do what the test says."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rolemesh.agent.fleet import Fleet
from rolemesh.agent.heritage import Heritage, told_uses, uses_from
from rolemesh.agent.instance_files import InstanceFiles
from rolemesh.agent.slots import Use
from rolemesh.agent.unit_control import ActiveState
from rolemesh.errors import SlotsBusy
from rolemesh.names import InstanceName, ModelId
from rolemesh.runtime.predecessor import Told
from rolemesh.runtime.tasks import TaskScope
from tests.agent.builders import desired, model, node_settings
from tests.fakes.units import FakeUnits
from tests.lab.poll import eventually

GPU0 = InstanceName("gpu0")
A = ModelId("a")


class World:
    """The fleets of two processes with the same units."""

    def __init__(self, files: InstanceFiles, scope: TaskScope) -> None:
        self.units = FakeUnits(files)
        self.files = files
        self.scope = scope
        self.told: list[Told] = []
        self.happened: list[str] = []
        self.old = self.fleet()
        self.old.start([desired("gpu0")])
        heritage = Heritage(self.old, tell=self.told.append, pause=self.pause, resume=self.resume)
        self.estate = heritage.estate(tuple, dict)

    def fleet(self) -> Fleet:
        settings = node_settings(model("a", parallel=2))
        return Fleet(control=self.units, files=self.files, scope=self.scope, settings=settings)

    async def pause(self) -> None:
        self.happened.append("paused")

    async def resume(self) -> None:
        self.happened.append("resumed")

    async def take_over(self) -> Fleet:
        """Let another fleet take over, up to its start."""
        new = self.fleet()
        new.used_elsewhere(uses_from(await self.estate.release()))
        new.start([desired("gpu0")])
        return new


@pytest.fixture
async def world(short_path: Path) -> AsyncIterator[World]:
    files = InstanceFiles.below(short_path)
    files.prepare()
    async with TaskScope() as scope:
        yield World(files, scope)


def state(fleet: Fleet) -> str:
    (instance,) = fleet.snapshot().instances
    return instance.view.state.value


async def test_no_slot_is_given_out_twice(world: World) -> None:
    lease = await world.old.lease(A, cost=1, wait_s=5)
    new = await world.take_over()
    assert world.happened == ["paused"]
    with pytest.raises(SlotsBusy):
        world.old.lease_now(A, cost=1)
    with await new.lease(A, cost=1, wait_s=5), pytest.raises(SlotsBusy):
        new.lease_now(A, cost=1)
    lease.release()
    new.used_elsewhere(uses_from(world.told[-1]))
    with await new.lease(A, cost=2, wait_s=5):
        assert world.units.runs == [("gpu0", "a")]


async def test_nothing_is_unloaded_that_requests_use_in_the_old_process(world: World) -> None:
    lease = await world.old.lease(A, cost=1, wait_s=5)
    new = await world.take_over()
    world.old.retire()
    assert new.unload_instance(GPU0)
    assert state(new) == "draining"
    lease.release()
    new.used_elsewhere(uses_from(world.told[-1]))
    await eventually(lambda: state(new) == "stopped", what="it is unloaded")


async def test_the_end_of_the_old_process_ends_its_use(world: World) -> None:
    await world.old.lease(A, cost=2, wait_s=5)
    new = await world.take_over()
    with pytest.raises(SlotsBusy):
        new.lease_now(A, cost=1)
    new.used_elsewhere(uses_from({}))
    assert new.lease_now(A, cost=2) is not None


async def test_what_is_told_in_turn_includes_what_was_told(world: World) -> None:
    await world.old.lease(A, cost=1, wait_s=5)
    new = await world.take_over()
    await new.lease(A, cost=1, wait_s=5)
    assert told_uses(new) == {"uses": {"gpu0": {"slots": 2, "requests": 2}}}


async def test_who_waits_in_the_old_process_is_sent_to_the_new_one(world: World) -> None:
    world.units.hold.clear()
    refusals: list[SlotsBusy] = []

    async def ask() -> None:
        try:
            await world.old.lease(A, cost=1, wait_s=60)
        except SlotsBusy as err:
            refusals.append(err)

    _ = world.scope.start(ask(), name="a request")
    await eventually(lambda: state(world.old) == "loading", what="it loads")
    new = await world.take_over()
    assert refusals == []  # the new process may still not come up
    world.old.retire()
    await eventually(lambda: refusals, what="it is told to come again")
    world.units.become("gpu0", ActiveState.ACTIVE)  # systemd did not stop loading
    with await new.lease(A, cost=1, wait_s=5):
        assert world.units.runs == [("gpu0", "a")]


async def test_a_held_fleet_does_nothing_to_units_until_it_goes_on(world: World) -> None:
    with await world.old.lease(A, cost=1, wait_s=5):
        pass
    await world.estate.release()
    world.old.unload(A)
    assert state(world.old) == "stopping"
    await world.estate.keep()
    await eventually(lambda: state(world.old) == "stopped", what="it is unloaded")
    assert world.happened == ["paused", "resumed"]
    with await world.old.lease(A, cost=1, wait_s=5):
        assert world.units.runs == [("gpu0", "a")] * 2


async def test_what_was_not_released_is_not_taken_back(world: World) -> None:
    await world.estate.keep()
    assert world.happened == []


@pytest.mark.parametrize(
    "told",
    [{}, {"uses": 1}, {"uses": {"gpu1": 1}}, {"uses": {"gpu1": {"slots": "1", "requests": 1}}}],
)
def test_what_another_version_says_otherwise_is_left_out(told: Told) -> None:
    assert uses_from(told) == {}


def test_what_was_told_is_understood() -> None:
    told = {"uses": {"gpu0": {"slots": 1, "requests": 2, "since": 3}}}
    assert uses_from(told) == {GPU0: Use(1, 2)}
