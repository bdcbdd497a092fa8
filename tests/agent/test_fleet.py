"""The fleet, with units that do what the test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Generator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from rolemesh.agent.desired import DesiredInstance
from rolemesh.agent.fleet import Fleet
from rolemesh.agent.fleet_snapshot import InstanceSnapshot
from rolemesh.agent.instance_files import InstanceFiles
from rolemesh.agent.slots import Lease
from rolemesh.agent.unit_control import ActiveState
from rolemesh.config.settings import NodeSettings
from rolemesh.errors import RoleMeshError, SlotsBusy, Unavailable, UnknownAlias
from rolemesh.names import InstanceName, ModelId
from rolemesh.runtime.tasks import TaskScope
from tests.agent.builders import desired, model, node_settings, observation
from tests.fakes.units import FakeUnits
from tests.lab.poll import eventually

GPU0, GPU1 = InstanceName("gpu0"), InstanceName("gpu1")


class Asked:
    """A request that waits for its lease; to be awaited like the lease itself."""

    def __init__(self, scope: TaskScope, leasing: Coroutine[Any, Any, Lease]) -> None:
        self.error: RoleMeshError | None = None
        self.task = scope.start(self._run(leasing), name="a request")

    def __await__(self) -> Generator[Any, None, Lease]:
        lease = yield from self.task.__await__()
        if lease is None:
            assert self.error is not None
            raise self.error
        return lease

    async def _run(self, leasing: Coroutine[Any, Any, Lease]) -> Lease | None:
        # An error here would end the scope of the fleet itself.
        try:
            return await leasing
        except RoleMeshError as err:
            self.error = err
            return None


class Stage:
    """A fleet over fake units, and the requests of a test."""

    def __init__(self, files: InstanceFiles, scope: TaskScope) -> None:
        self.files = files
        self.scope = scope
        self.units = FakeUnits(files)
        self.settings = node_settings()

    def open(self, settings: NodeSettings, *instances: DesiredInstance) -> "Stage":
        self.settings = settings
        self.fleet = Fleet(
            control=self.units, files=self.files, scope=self.scope, settings=settings
        )
        self.fleet.start(instances)
        return self

    async def lease(
        self,
        name: str,
        *,
        cost: int = 1,
        wait_s: float = 5.0,
        prefer: InstanceName | None = None,
    ) -> Lease:
        return await self.fleet.lease(ModelId(name), cost=cost, wait_s=wait_s, prefer=prefer)

    def ask(self, name: str, **others: Any) -> "Asked":
        """Ask for a lease in a task of its own."""
        return Asked(self.scope, self.lease(name, **others))

    def instance(self, name: str = "gpu0") -> InstanceSnapshot:
        found = {each.view.name: each for each in self.fleet.snapshot().instances}
        return found[InstanceName(name)]

    def state(self, name: str = "gpu0") -> str:
        return self.instance(name).view.state.value

    async def becomes(self, state: str, name: str = "gpu0") -> None:
        await eventually(lambda: self.state(name) == state, what=f"{name} is {state}")

    def ran(self) -> list[tuple[str, str | None]]:
        return [(instance, model_id) for instance, model_id in self.units.runs]


@pytest.fixture
async def stage(short_path: Path) -> AsyncIterator[Stage]:
    files = InstanceFiles.below(short_path)
    files.prepare()
    async with TaskScope() as scope:
        yield Stage(files, scope)


# --- loading on demand ----------------------------------------------------------------------


async def test_a_request_loads_its_model_and_holds_a_slot(stage: Stage) -> None:
    stage.open(node_settings(model("a", parallel=2)), desired("gpu0"))
    assert stage.state() == "stopped"
    with await stage.lease("a") as lease:
        assert (lease.instance, lease.model_id) == (GPU0, "a")
        snapshot = stage.instance()
        assert (snapshot.slots, snapshot.slots_held, snapshot.main_pid) == (2, 1, 4711)
    assert stage.instance().slots_held == 0
    assert stage.ran() == [("gpu0", "a")]
    assert stage.units.resets == [GPU0]


async def test_all_who_wait_for_a_model_join_one_load(stage: Stage) -> None:
    stage.open(node_settings(model("a", parallel=3)), desired("gpu0"), desired("gpu1"))
    stage.units.hold.clear()
    asked = [stage.ask("a") for _ in range(3)]
    await stage.becomes("loading")
    assert stage.instance().view.waiting == 3
    stage.units.hold.set()
    leases = await asyncio.gather(*asked)
    assert {lease.instance for lease in leases} == {GPU0}
    assert stage.ran() == [("gpu0", "a")]


async def test_without_a_free_slot_the_answer_is_slots_busy_at_once(stage: Stage) -> None:
    stage.open(node_settings(model("a", parallel=2)), desired("gpu0"))
    with await stage.lease("a"), await stage.lease("a"):
        with pytest.raises(SlotsBusy, match="every slot of 'a' is taken"):
            await stage.lease("a")
        with await stage.lease("a", cost=0):
            pass
    with await stage.lease("a", cost=7) as lease:
        assert lease.slots == 2


async def test_a_model_that_is_not_configured_is_unknown(stage: Stage) -> None:
    stage.open(node_settings("a"), desired("gpu0"))
    with pytest.raises(UnknownAlias):
        await stage.lease("b")
    with pytest.raises(UnknownAlias):
        stage.fleet.unload(ModelId("b"))


async def test_a_request_waits_no_longer_than_it_may_but_the_load_goes_on(stage: Stage) -> None:
    stage.open(node_settings("a"), desired("gpu0"))
    stage.units.hold.clear()
    with pytest.raises(Unavailable, match="still loading") as raised:
        await stage.lease("a", wait_s=0.05)
    assert raised.value.reason == "loading"
    stage.units.hold.set()
    await stage.becomes("ready")
    assert stage.ran() == [("gpu0", "a")]


async def test_a_client_that_leaves_leaves_the_load_running(stage: Stage) -> None:
    stage.open(node_settings("a"), desired("gpu0"))
    stage.units.hold.clear()
    asked = stage.ask("a")
    await stage.becomes("loading")
    asked.task.cancel()
    await asyncio.wait((asked.task,))
    assert stage.instance().view.waiting == 0
    stage.units.hold.set()
    await stage.becomes("ready")


async def test_the_parameters_name_model_and_devices(stage: Stage) -> None:
    stage.open(node_settings("a"), desired("gpu1"))
    with await stage.lease("a"):
        told = stage.files.read_parameters(GPU1)
        assert told is not None
        assert (told.model_id, told.devices) == ("a", ("GPU-1",))


# --- failing --------------------------------------------------------------------------------


async def test_a_failed_load_is_told_to_all_who_wait_with_its_reason(stage: Stage) -> None:
    stage.open(node_settings(model("a", parallel=2)), desired("gpu0"))
    stage.units.failing[ModelId("a")] = "out of memory"
    stage.units.hold.clear()
    asked = [stage.ask("a"), stage.ask("a")]
    await stage.becomes("loading")
    stage.units.hold.set()
    await asyncio.wait([each.task for each in asked])
    for each in asked:
        error = each.error
        assert isinstance(error, Unavailable)
        assert (error.reason, str(error)) == ("failed", "'a' failed to load: out of memory")
    assert stage.instance().reason == "out of memory"
    assert stage.fleet.snapshot().failures[ModelId("a")].reason == "out of memory"


async def test_a_failed_load_is_not_tried_again_at_once(stage: Stage) -> None:
    stage.open(node_settings("a"), desired("gpu0"))
    stage.units.failing[ModelId("a")] = "out of memory"
    for _ in range(3):
        with pytest.raises(Unavailable, match="out of memory") as raised:
            await stage.lease("a")
        assert raised.value.retry_after_s == pytest.approx(10.0, abs=1.0)
    assert stage.ran() == [("gpu0", "a")]


async def test_another_model_may_take_the_place_of_a_failed_one(stage: Stage) -> None:
    stage.open(node_settings("a", "b"), desired("gpu0"))
    stage.units.failing[ModelId("a")] = "out of memory"
    with pytest.raises(Unavailable):
        await stage.lease("a")
    with await stage.lease("b"):
        assert stage.units.stops == [GPU0]
        assert stage.ran() == [("gpu0", "a"), ("gpu0", "b")]


async def test_a_model_known_not_to_load_evicts_nobody(stage: Stage) -> None:
    stage.open(node_settings("a", "b"), desired("gpu0"))
    (await stage.lease("a")).release()
    stage.fleet.observe(observation(0, problems={"b": "no such file"}))
    with pytest.raises(Unavailable, match="no such file") as raised:
        await stage.lease("b")
    assert raised.value.reason == "unusable"
    assert stage.state() == "ready"


async def test_parameters_that_cannot_be_written_fail_the_load(
    stage: Stage, short_path: Path
) -> None:
    stage.open(node_settings("a"), desired("gpu0"))
    (short_path / "parameters").rmdir()
    with pytest.raises(Unavailable, match="cannot be told what to run"):
        await stage.lease("a")
    assert stage.ran() == []


async def test_where_no_instance_can_ever_take_a_model_the_answer_is_immediate(
    stage: Stage,
) -> None:
    stage.open(node_settings("a"), desired("gpu0", missing="gpu0 is not there"))
    with pytest.raises(Unavailable, match="gpu0: gpu0 is not there") as raised:
        await stage.lease("a", wait_s=60)
    assert raised.value.reason == "no_instance"


# --- switching ------------------------------------------------------------------------------


async def test_an_idle_instance_is_switched_the_least_recently_used_first(stage: Stage) -> None:
    stage.open(node_settings("a", "b", "c"), desired("gpu0"), desired("gpu1"))
    for name in ("a", "b", "a"):
        (await stage.lease(name)).release()
    with await stage.lease("c") as lease:
        assert lease.instance == GPU1
    assert stage.ran() == [("gpu0", "a"), ("gpu1", "b"), ("gpu1", "c")]
    assert stage.units.stops == [GPU1]


async def test_a_busy_instance_is_switched_when_its_last_request_ends(stage: Stage) -> None:
    stage.open(node_settings(model("a", parallel=2), "b"), desired("gpu0"))
    first, second = await stage.lease("a"), await stage.lease("a")
    asked = stage.ask("b")
    first.release()
    await asyncio.sleep(0)
    assert stage.state() == "ready"
    second.release()
    with await asked as lease:
        assert lease.model_id == "b"


async def test_who_waits_for_room_comes_before_later_requests_for_what_is_loaded(
    stage: Stage,
) -> None:
    stage.open(node_settings("a", "b"), desired("gpu0"))
    first = await stage.lease("a")
    asked = stage.ask("b")
    await eventually(lambda: stage.fleet._waiting.counts.get(ModelId("b")), what="b is waited for")
    first.release()
    again = stage.ask("a")
    with await asked as lease:
        assert lease.model_id == "b"
    with await again as lease:
        assert lease.model_id == "a"


async def test_requests_that_waited_for_a_load_come_before_the_next_switch(stage: Stage) -> None:
    stage.open(node_settings("a", "b"), desired("gpu0"))
    stage.units.hold.clear()
    first, second = stage.ask("a"), stage.ask("b")
    await stage.becomes("loading")
    stage.units.hold.set()
    with await first as lease:
        assert lease.model_id == "a"
    with await second as lease:
        assert lease.model_id == "b"


async def test_waiting_for_room_ends_with_the_reason(stage: Stage) -> None:
    stage.open(node_settings("a", "b"), desired("gpu0"))
    _ = await stage.lease("a")
    with pytest.raises(Unavailable, match="gpu0: busy with a") as raised:
        await stage.lease("b", wait_s=0.05)
    assert raised.value.reason == "no_room"


async def test_a_pinned_instance_is_never_switched(stage: Stage) -> None:
    stage.open(node_settings("a", "b"), desired("gpu0", "a", pinned=True))
    await stage.becomes("ready")
    with pytest.raises(Unavailable, match="pinned, runs a"):
        await stage.lease("b", wait_s=60)


async def test_an_instance_that_systemd_starts_with_the_machine_is_not_switched_either(
    stage: Stage,
) -> None:
    stage.open(node_settings("a", "b"), desired("gpu0", "a"))
    (await stage.lease("a")).release()
    stage.units.become("gpu0", ActiveState.ACTIVE, enabled=True)
    with pytest.raises(Unavailable, match="pinned, runs a"):
        await stage.lease("b")
    stage.units.become("gpu0", ActiveState.ACTIVE)
    (await stage.lease("b")).release()


async def test_a_second_instance_with_free_slots_is_used(stage: Stage) -> None:
    stage.open(node_settings("a"), desired("gpu0", "a"), desired("gpu1", "a"))
    await stage.becomes("ready", "gpu0")
    await stage.becomes("ready", "gpu1")
    with await stage.lease("a") as first, await stage.lease("a") as second:
        assert {first.instance, second.instance} == {GPU0, GPU1}
        with pytest.raises(SlotsBusy):
            await stage.lease("a")


@pytest.mark.parametrize("preferred", [GPU0, GPU1])
async def test_the_preferred_instance_is_taken_while_it_has_a_slot(
    stage: Stage, preferred: InstanceName
) -> None:
    other = {GPU0: GPU1, GPU1: GPU0}[preferred]
    stage.open(node_settings(model("a", parallel=2)), desired("gpu0", "a"), desired("gpu1", "a"))
    await stage.becomes("ready", "gpu0")
    await stage.becomes("ready", "gpu1")
    with contextlib.ExitStack() as held:
        chosen = [
            held.enter_context(await stage.lease("a", prefer=preferred)).instance for _ in range(3)
        ]
    assert chosen == [preferred, preferred, other]
    with await stage.lease("a", prefer=preferred), await stage.lease("a", prefer=other) as lease:
        assert lease.instance == other


async def test_a_preferred_instance_without_room_for_the_whole_request_is_not_taken(
    stage: Stage,
) -> None:
    stage.open(node_settings(model("a", parallel=2)), desired("gpu0", "a"), desired("gpu1", "a"))
    await stage.becomes("ready", "gpu0")
    await stage.becomes("ready", "gpu1")
    with await stage.lease("a", prefer=GPU0), await stage.lease("a", cost=2, prefer=GPU0) as lease:
        assert lease.instance == GPU1


async def test_a_preferred_instance_that_is_not_there_or_not_ready_changes_nothing(
    stage: Stage,
) -> None:
    stage.open(node_settings("a"), desired("gpu0", "a"), desired("gpu1"))
    await stage.becomes("ready")
    for name in (GPU1, InstanceName("gpu9")):
        with await stage.lease("a", prefer=name) as lease:
            assert lease.instance == GPU0


# --- what runs already, and what happens to units by themselves -----------------------------


async def test_instances_with_a_model_are_started_at_once_and_others_stay_cold(
    stage: Stage,
) -> None:
    stage.open(node_settings("a"), desired("gpu0", "a"), desired("gpu1"))
    await stage.becomes("ready")
    assert stage.state("gpu1") == "stopped"
    assert stage.ran() == [("gpu0", "a")]


async def test_a_unit_that_runs_already_is_adopted_with_the_model_it_was_told(
    stage: Stage,
) -> None:
    stage.files.write_parameters(GPU0, ModelId("b"), ())
    stage.units.become("gpu0", ActiveState.ACTIVE)
    stage.open(node_settings("a", model("b", parallel=4)), desired("gpu0", "a"))
    assert stage.state() == "ready"
    with await stage.lease("b") as lease:
        assert lease.instance == GPU0
        assert stage.instance().slots == 4
    assert stage.ran() == []


async def test_a_unit_that_is_loading_is_adopted_too(stage: Stage) -> None:
    stage.units.become("gpu0", ActiveState.ACTIVATING)
    stage.open(node_settings("a"), desired("gpu0", "a"))
    asked = stage.ask("a")
    await asyncio.sleep(0)
    stage.units.become("gpu0", ActiveState.ACTIVE)
    with await asked:
        assert stage.ran() == []


async def test_an_adopted_unit_with_a_model_no_longer_configured_is_stopped(stage: Stage) -> None:
    stage.files.write_parameters(GPU0, ModelId("old"), ())
    stage.units.become("gpu0", ActiveState.ACTIVE)
    stage.open(node_settings("a"), desired("gpu0"))
    await stage.becomes("stopped")
    assert stage.units.stops == [GPU0]


async def test_a_unit_that_failed_earlier_is_started_anew(stage: Stage) -> None:
    stage.units.become("gpu0", ActiveState.FAILED, status_text="x", result="exit-code")
    stage.open(node_settings("a"), desired("gpu0"))
    assert stage.state() == "failed"
    with await stage.lease("a"):
        assert stage.ran() == [("gpu0", "a")]


async def test_after_a_crash_requests_wait_for_the_automatic_restart(stage: Stage) -> None:
    stage.open(node_settings("a"), desired("gpu0"))
    (await stage.lease("a")).release()
    stage.units.crash("gpu0")
    assert stage.state() == "loading"
    asked = stage.ask("a")
    stage.units.restart_by_itself("gpu0")
    assert stage.state() == "loading"
    stage.units.become("gpu0", ActiveState.ACTIVE)
    with await asked:
        assert stage.ran() == [("gpu0", "a")]


async def test_a_unit_that_crashes_again_fails_those_who_wait_and_serves_when_it_recovers(
    stage: Stage,
) -> None:
    stage.open(node_settings("a"), desired("gpu0"))
    (await stage.lease("a")).release()
    stage.units.crash("gpu0")
    asked = stage.ask("a")
    await asyncio.sleep(0)
    stage.units.restart_by_itself("gpu0")
    stage.units.crash("gpu0", "llama-server exited with status 1: bad magic")
    with pytest.raises(Unavailable, match="bad magic"):
        await asked
    stage.units.restart_by_itself("gpu0")
    assert stage.state() == "failed"
    stage.units.become("gpu0", ActiveState.ACTIVE)
    with await stage.lease("a"):
        assert stage.fleet.snapshot().failures == {}


async def test_a_unit_stopped_by_hand_stays_stopped_until_somebody_asks(stage: Stage) -> None:
    stage.open(node_settings("a"), desired("gpu0", "a"))
    await stage.becomes("ready")
    stage.units.become("gpu0", ActiveState.DEACTIVATING)
    assert stage.state() == "stopping"
    stage.units.become("gpu0", ActiveState.INACTIVE)
    assert stage.state() == "stopped"
    assert stage.units.stops == []
    assert stage.instance().reason == "stopped outside the agent"
    assert stage.ran() == [("gpu0", "a")]
    with await stage.lease("a"):
        assert len(stage.ran()) == 2


async def test_units_of_others_are_left_alone(stage: Stage) -> None:
    stage.open(node_settings("a"), desired("gpu0"))
    stage.units.become("gpu7", ActiveState.ACTIVE)
    assert [each.view.name for each in stage.fleet.snapshot().instances] == ["gpu0"]


# --- unloading ------------------------------------------------------------------------------


async def test_unloading_lets_running_requests_finish_and_takes_back_the_parameters(
    stage: Stage,
) -> None:
    stage.open(node_settings("a"), desired("gpu0"))
    lease = await stage.lease("a")
    assert stage.fleet.unload(ModelId("a")) == (GPU0,)
    assert stage.state() == "draining"
    assert stage.units.stops == []
    lease.release()
    await stage.becomes("stopped")
    assert stage.files.read_parameters(GPU0) is None
    assert stage.fleet.unload(ModelId("a")) == ()


async def test_a_load_under_way_can_be_unloaded(stage: Stage) -> None:
    stage.open(node_settings("a"), desired("gpu0", "a"))
    stage.units.hold.clear()
    await stage.becomes("loading")
    stage.fleet.unload(ModelId("a"))
    await stage.becomes("stopped")
    assert stage.units.stops == [GPU0]


async def test_a_request_during_a_stop_loads_the_model_again(stage: Stage) -> None:
    stage.open(node_settings("a"), desired("gpu0"))
    (await stage.lease("a")).release()
    stage.units.hold_stop.clear()
    stage.fleet.unload(ModelId("a"))
    await stage.becomes("stopping")
    asked = stage.ask("a")
    await asyncio.sleep(0)
    stage.units.hold_stop.set()
    with await asked:
        assert stage.ran() == [("gpu0", "a"), ("gpu0", "a")]


async def test_ensure_ready_names_the_instances(stage: Stage) -> None:
    stage.open(node_settings("a"), desired("gpu0"))
    assert await stage.fleet.ensure_ready(ModelId("a"), wait_s=5) == (GPU0,)


# --- changed settings -----------------------------------------------------------------------


def with_models(settings: NodeSettings, *names: str, **changes: Any) -> NodeSettings:
    models = {ModelId(name): replace(model(name), **changes) for name in names}
    return replace(settings, models=MappingProxyType(models))


async def test_what_did_not_change_goes_on_untouched(stage: Stage) -> None:
    stage.open(node_settings("a", "b"), desired("gpu0", "a"), desired("gpu1", "b"))
    await stage.becomes("ready")
    await stage.becomes("ready", "gpu1")
    changed = {**stage.settings.models, ModelId("b"): model("b", parallel=3)}
    settings = replace(stage.settings, models=MappingProxyType(changed))
    with await stage.lease("a"):
        stage.fleet.apply(settings, (desired("gpu0", "a"), desired("gpu1", "b")))
        assert stage.state() == "ready"
        await eventually(lambda: stage.instance("gpu1").slots == 3, what="b has its new slots")
        await stage.becomes("ready", "gpu1")
    assert stage.units.stops == [GPU1]


async def test_a_changed_model_is_restarted_when_its_last_request_ends(stage: Stage) -> None:
    stage.open(node_settings("a"), desired("gpu0", "a"))
    lease = await stage.lease("a")
    stage.fleet.apply(with_models(stage.settings, "a", context_size=9), (desired("gpu0", "a"),))
    assert stage.state() == "draining"
    waiting = stage.ask("a")
    lease.release()
    with await waiting:
        assert stage.ran() == [("gpu0", "a"), ("gpu0", "a")]


async def test_a_removed_model_is_stopped_and_unknown_to_those_who_wait(stage: Stage) -> None:
    stage.open(node_settings("a", "b"), desired("gpu0"))
    stage.units.hold.clear()
    asked = stage.ask("a")
    await stage.becomes("loading")
    stage.fleet.apply(with_models(stage.settings, "b"), (desired("gpu0"),))
    with pytest.raises(UnknownAlias):
        await asked
    await stage.becomes("stopped")


async def test_a_model_removed_before_its_turn_is_not_started(stage: Stage) -> None:
    stage.open(node_settings("a", "b"), desired("gpu0"))
    (await stage.lease("a")).release()
    stage.units.hold_stop.clear()
    asked = stage.ask("b")
    await stage.becomes("stopping")
    stage.fleet.apply(with_models(stage.settings, "a"), (desired("gpu0"),))
    stage.units.hold_stop.set()
    with pytest.raises(UnknownAlias):
        await asked
    await stage.becomes("stopped")
    assert stage.ran() == [("gpu0", "a")]


async def test_a_removed_instance_is_drained_stopped_and_forgotten(stage: Stage) -> None:
    stage.open(node_settings("a"), desired("gpu0", "a"), desired("gpu1"))
    lease = await stage.lease("a")
    stage.fleet.apply(stage.settings, (desired("gpu1"),))
    assert stage.instance("gpu0").view.missing == "no longer configured"
    lease.release()
    await eventually(
        lambda: [each.view.name for each in stage.fleet.snapshot().instances] == ["gpu1"],
        what="gpu0 is forgotten",
    )
    with await stage.lease("a") as lease:
        assert lease.instance == GPU1


async def test_a_new_assignment_is_loaded_once_the_old_model_is_idle(stage: Stage) -> None:
    stage.open(node_settings("a", "b"), desired("gpu0", "a"))
    await stage.becomes("ready")
    stage.fleet.apply(stage.settings, (desired("gpu0", "b"),))
    await eventually(lambda: stage.ran()[-1] == ("gpu0", "b"), what="b was started")
    await stage.becomes("ready")


async def test_a_change_of_settings_forgets_the_failures_of_the_models_it_changes(
    stage: Stage,
) -> None:
    stage.open(node_settings("a"), desired("gpu0"))
    stage.units.failing[ModelId("a")] = "bad file"
    with pytest.raises(Unavailable):
        await stage.lease("a")
    stage.units.failing.clear()
    stage.fleet.apply(with_models(stage.settings, "a", path=Path("/new.gguf")), (desired("gpu0"),))
    with await stage.lease("a"):
        assert len(stage.ran()) == 2


async def test_a_gpu_that_comes_back_makes_its_instance_usable(stage: Stage) -> None:
    stage.open(node_settings("a"), desired("gpu0", "a", missing="gpu0 is not there"))
    assert stage.ran() == []
    stage.fleet.apply(stage.settings, (desired("gpu0", "a"),))
    with await stage.lease("a") as lease:
        assert lease.instance == GPU0


# --- telling --------------------------------------------------------------------------------


async def test_listeners_hear_of_states(stage: Stage) -> None:
    stage.open(node_settings("a"), desired("gpu0"))
    seen: list[str] = []
    stage.fleet.subscribe(lambda: seen.append(stage.state()))
    (await stage.lease("a")).release()
    assert list(dict.fromkeys(seen)) == ["starting", "loading", "ready"]
