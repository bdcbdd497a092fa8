"""What the fleet does about memory, patience and idleness; in virtual time."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rolemesh.agent.desired import DesiredInstance
from rolemesh.agent.fleet import Fleet
from rolemesh.agent.fleet_memory import FleetMemory
from rolemesh.agent.fleet_snapshot import InstanceSnapshot
from rolemesh.agent.instance_files import InstanceFiles
from rolemesh.agent.inventory import GpuProcess, Inventory
from rolemesh.agent.observation import HostObservation
from rolemesh.agent.operator_choices import OperatorChoices
from rolemesh.agent.slots import Lease
from rolemesh.agent.unit_control import ActiveState
from rolemesh.config.settings import NodePolicy, NodeSettings
from rolemesh.errors import Unavailable, UnknownInstance
from rolemesh.names import InstanceName, ModelId
from rolemesh.runtime.tasks import TaskScope
from tests.agent.builders import desired, model, node_settings, observation
from tests.fakes.units import FakeUnits
from tests.lab.virtual_time import run_in_virtual_time

A, B = ModelId("a"), ModelId("b")
GPU0, GPU1 = InstanceName("gpu0"), InstanceName("gpu1")
SHORT = NodePolicy(switch_after_s=30, min_resident_s=60, memory_margin_mib=0)


class Scene:
    """A fleet over fake units; `seen` is what NVML says from now on."""

    def __init__(
        self,
        scope: TaskScope,
        folder: Path,
        settings: NodeSettings,
        seen: HostObservation,
        instances: tuple[DesiredInstance, ...],
        choices: OperatorChoices | None = None,
    ) -> None:
        self.scope = scope
        self.files = InstanceFiles.below(folder)
        self.files.prepare()
        self.units = FakeUnits(self.files)
        self.seen = seen
        self.settings = settings
        self.fleet = Fleet(
            control=self.units,
            files=self.files,
            scope=scope,
            settings=settings,
            memory=FleetMemory(self._read),
            choices=choices,
        )
        self.fleet.start(instances, seen)

    async def _read(self) -> Inventory:
        return self.seen.inventory

    def look(self, seen: HostObservation) -> None:
        self.seen = seen
        self.fleet.observe(seen)

    async def lease(self, name: str, wait_s: float = 600.0) -> Lease:
        return await self.fleet.lease(ModelId(name), cost=1, wait_s=wait_s)

    def instance(self, name: str = "gpu0") -> InstanceSnapshot:
        return {each.view.name: each for each in self.fleet.snapshot().instances}[
            InstanceName(name)
        ]

    def states(self) -> dict[str, str]:
        return {
            each.view.name: f"{each.view.state.value} {each.view.model_id or ''}".strip()
            for each in self.fleet.snapshot().instances
        }

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10_000):
            while not condition():  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(0.5)


def play(
    act: Callable[[Scene], Awaitable[None]],
    settings: NodeSettings,
    *instances: DesiredInstance,
    seen: HostObservation | None = None,
    choices: OperatorChoices | None = None,
) -> None:
    """Run a test's act in virtual time."""

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with TaskScope() as scope:
                scene = Scene(
                    scope, Path(folder), settings, seen or observation(0), instances, choices
                )
                await act(scene)
                scene.fleet.end()

    run_in_virtual_time(main())


# --- patience -------------------------------------------------------------------------------


def test_two_models_under_steady_load_on_one_gpu_both_get_answers() -> None:
    async def act(scene: Scene) -> None:
        answers: dict[str, list[float]] = {"a": [], "b": []}
        clock = asyncio.get_running_loop().time

        async def client(name: str) -> None:
            while clock() < 2000:
                lease = await scene.lease(name, wait_s=300)
                await asyncio.sleep(3)
                lease.release()
                answers[name].append(clock())

        clients = [scene.scope.start(client(name), name=name) for name in ("a", "a", "b", "b")]
        await asyncio.gather(*clients)
        for times in answers.values():
            gaps = [late - early for early, late in pairwise(times)]
            # Waits for the other's stay, the patience of a request, its own turn.
            assert max(gaps) <= 60 + 30 + 3 + 10
            assert len(times) > 300
        switches = len(scene.units.runs)
        assert 20 < switches < 40, "each stays its time: no thrashing"

    play(
        act,
        node_settings(model("a", parallel=2), model("b", parallel=2), policy=SHORT),
        desired("gpu0"),
    )


def test_a_busy_model_is_left_alone_until_patience_is_over() -> None:
    async def act(scene: Scene) -> None:
        lease = await scene.lease("a")
        await asyncio.sleep(100)
        waiting = scene.scope.start(scene.lease("b"), name="b")
        await asyncio.sleep(29)
        assert scene.states() == {"gpu0": "ready a"}
        await asyncio.sleep(2)
        assert scene.states() == {"gpu0": "draining a"}
        assert scene.units.stops == []
        lease.release()
        (await waiting).release()
        assert scene.states() == {"gpu0": "ready b"}

    play(act, node_settings("a", "b", policy=SHORT), desired("gpu0"))


# --- memory ---------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_numbers_and_nothing_is_stopped() -> None:
    async def act(scene: Scene) -> None:
        (await scene.lease("a")).release()
        with pytest.raises(Unavailable) as raised:
            await scene.lease("b")
        assert str(raised.value) == (
            "no instance can take 'b': it needs 9.1 GiB; gpu0: 8.0 GiB free of 8.0 GiB"
        )
        assert raised.value.reason == "does_not_fit"
        assert scene.states() == {"gpu0": "ready a"}
        assert scene.fleet.snapshot().refused.keys() == {"b"}

    seen = observation(0, total_mib=8192, used_mib=0, needs_mib={"a": 4096, "b": 9318})
    play(
        act,
        node_settings("a", "b", policy=SHORT, instances={"gpu0": None}),
        desired("gpu0"),
        seen=seen,
    )


def test_a_start_waits_until_the_memory_is_really_back() -> None:
    async def act(scene: Scene) -> None:
        clock = asyncio.get_running_loop().time
        (await scene.lease("a")).release()
        scene.seen = observation(0, total_mib=8192, used_mib=6000)
        stopped_at: list[float] = []

        async def release() -> None:
            await scene.until(lambda: bool(scene.units.stops))
            stopped_at.append(clock())
            await asyncio.sleep(2)
            scene.seen = observation(0, total_mib=8192, used_mib=0)

        task = scene.scope.start(release(), name="driver")
        (await scene.lease("b")).release()
        await task
        assert scene.units.runs == [(GPU0, A), (GPU0, B)]
        assert clock() - stopped_at[0] >= 2

    seen = observation(0, total_mib=8192, used_mib=0, needs_mib={"a": 6000, "b": 6000})
    settings = node_settings("a", "b", policy=SHORT, instances={"gpu0": None})
    play(act, settings, desired("gpu0"), seen=seen)


def test_memory_that_does_not_come_back_fails_the_load_with_the_figures() -> None:
    async def act(scene: Scene) -> None:
        scene.seen = observation(0, total_mib=8192, used_mib=6000)
        with pytest.raises(Unavailable, match=r"needs 5\.9 GiB, but gpu0 has 2\.1 GiB free"):
            await scene.lease("a")
        assert scene.units.runs == []

    seen = observation(0, total_mib=8192, used_mib=0, needs_mib={"a": 6000})
    settings = node_settings("a", policy=SHORT, instances={"gpu0": None})
    play(act, settings, desired("gpu0"), seen=seen)


def test_what_others_take_of_a_gpu_is_not_ours_to_give() -> None:
    async def act(scene: Scene) -> None:
        with pytest.raises(
            Unavailable, match=r"2\.1 GiB free of 8\.0 GiB \(taken: others 5\.9 GiB\)"
        ):
            await scene.lease("a")
        scene.look(observation(0, total_mib=8192, used_mib=0, needs_mib={"a": 6000}))
        (await scene.lease("a")).release()
        # Its own memory is not taken for somebody else's, now or when it is gone.
        scene.look(observation(0, total_mib=8192, used_mib=6100, needs_mib={"a": 6000}))
        await asyncio.sleep(30)
        scene.look(observation(0, total_mib=8192, used_mib=6100, needs_mib={"a": 6000, "b": 7000}))
        scene.fleet.unload(A)
        await scene.until(lambda: scene.states() == {"gpu0": "stopped"})
        scene.look(observation(0, total_mib=8192, used_mib=6100, needs_mib={"a": 6000, "b": 7000}))
        scene.seen = observation(0, total_mib=8192, used_mib=100)
        (await scene.lease("b")).release()

    seen = observation(0, total_mib=8192, used_mib=6000, needs_mib={"a": 6000})
    settings = node_settings("a", "b", policy=SHORT, instances={"gpu0": None})
    play(act, settings, desired("gpu0"), seen=seen)


def test_small_models_share_a_gpu_and_their_places_are_forgotten_with_them() -> None:
    async def act(scene: Scene) -> None:
        for name in ("a", "b", "c"):
            (await scene.lease(name)).release()
        assert scene.states() == {"gpu0": "ready a", "gpu0-2": "ready b", "gpu0-3": "ready c"}
        assert scene.instance("gpu0-3").devices == ("GPU-0",)
        scene.fleet.unload(B)
        await scene.until(lambda: "gpu0-2" not in scene.states())
        (await scene.lease("b")).release()
        assert scene.states()["gpu0-2"] == "ready b"
        # The next settings leave them as they are.
        scene.fleet.apply(scene.settings, (desired("gpu0"),), scene.seen)
        assert scene.states()["gpu0-3"] == "ready c"

    seen = observation(0, total_mib=8192, used_mib=0, needs_mib=dict.fromkeys("abc", 2000))
    play(act, node_settings("a", "b", "c", policy=SHORT), desired("gpu0"), seen=seen)


def test_an_agent_adopts_what_its_predecessor_started_beside_others() -> None:
    async def act(scene: Scene) -> None:
        scene.files.write_parameters(InstanceName("gpu0-2"), B, ("GPU-0",))
        scene.units.become("gpu0-2", ActiveState.ACTIVE)
        again = Fleet(
            control=scene.units, files=scene.files, scope=scene.scope, settings=scene.settings
        )
        again.start([desired("gpu0")], scene.seen)
        names = {each.view.name: each.view.model_id for each in again.snapshot().instances}
        assert names == {"gpu0": None, "gpu0-2": B}
        again.end()

    play(act, node_settings("a", "b", policy=SHORT), desired("gpu0"))


def test_a_split_model_runs_over_the_gpus_it_takes() -> None:
    async def act(scene: Scene) -> None:
        (await scene.lease("a")).release()
        told = scene.files.read_parameters(GPU0)
        assert told is not None
        assert told.devices == ("GPU-0", "GPU-1")
        (await scene.lease("b")).release()
        assert scene.states() == {"gpu0": "ready b", "gpu1": "stopped"}

    seen = observation(0, 1, total_mib=8192, used_mib=0, needs_mib={"a": 12000, "b": 1000})
    settings = node_settings("a", "b", policy=SHORT, instances={"gpu0": None, "gpu1": None})
    play(act, settings, desired("gpu0"), desired("gpu1"), seen=seen)


def test_an_assigned_model_that_does_not_fit_is_not_started() -> None:
    async def act(scene: Scene) -> None:
        assert scene.units.runs == []
        failure = scene.fleet.snapshot().failures[A]
        assert "8.0 GiB free of 8.0 GiB" in failure.reason

    seen = observation(0, total_mib=8192, used_mib=0, needs_mib={"a": 9000})
    settings = node_settings("a", policy=SHORT, instances={"gpu0": "a"})
    play(act, settings, desired("gpu0", "a"), seen=seen)


# --- idleness and warmth --------------------------------------------------------------------


def test_what_nobody_uses_is_unloaded_after_its_time() -> None:
    async def act(scene: Scene) -> None:
        clock = asyncio.get_running_loop().time
        (await scene.lease("a")).release()
        used_at = clock()
        (await scene.lease("b")).release()
        await scene.until(lambda: scene.states()["gpu0"] == "stopped")
        assert 300 <= clock() - used_at <= 303
        await asyncio.sleep(5000)
        assert scene.states()["gpu1"] == "ready b", "its own idle_unload_s of 0 means never"

    policy = replace(SHORT, idle_unload_s=300)
    settings = node_settings("a", model("b", idle_unload_s=0), policy=policy)
    play(act, settings, desired("gpu0"), desired("gpu1"), seen=observation(0, 1))


def test_a_pinned_or_busy_instance_is_not_unloaded() -> None:
    async def act(scene: Scene) -> None:
        lease = await scene.lease("b")
        await asyncio.sleep(1000)
        assert scene.states() == {"gpu0": "ready a", "gpu1": "ready b"}
        lease.release()
        await scene.until(lambda: scene.states()["gpu1"] == "stopped")

    policy = replace(SHORT, idle_unload_s=300)
    settings = node_settings("a", "b", policy=policy)
    play(
        act,
        settings,
        desired("gpu0", "a", pinned=True),
        desired("gpu1"),
        seen=observation(0, 1),
    )


def test_a_warm_model_is_loaded_whenever_there_is_room_and_displaces_nobody() -> None:
    async def act(scene: Scene) -> None:
        await scene.until(lambda: scene.states() == {"gpu0": "ready a"})
        (await scene.lease("b")).release()
        await asyncio.sleep(100)
        assert scene.states() == {"gpu0": "ready b"}
        scene.fleet.unload(B)
        await scene.until(lambda: scene.states() == {"gpu0": "ready a"})

    settings = node_settings(model("a", warm=True), "b", policy=SHORT)
    play(act, settings, desired("gpu0"))


def test_a_warm_model_that_fails_is_tried_again_with_pauses() -> None:
    async def act(scene: Scene) -> None:
        scene.units.failing[A] = "out of memory"
        await asyncio.sleep(100)
        assert 2 <= len(scene.units.runs) <= 5
        scene.units.failing.clear()
        await scene.until(lambda: scene.states() == {"gpu0": "ready a"})

    play(act, node_settings(model("a", warm=True), policy=SHORT), desired("gpu0"))


# --- lost and stuck -------------------------------------------------------------------------


def test_a_lost_gpu_takes_its_own_instance_out_and_no_other() -> None:
    async def act(scene: Scene) -> None:
        (await scene.lease("a")).release()
        (await scene.lease("b")).release()
        lost = desired("gpu0", missing="gpu0 is lost: GPU is lost", is_lost=True)
        scene.fleet.apply(scene.settings, (lost, desired("gpu1")), scene.seen)
        await scene.until(lambda: scene.states()["gpu0"] == "stopped")
        assert scene.states()["gpu1"] == "ready b"
        (await scene.lease("a", wait_s=100)).release()
        assert scene.states() == {"gpu0": "stopped", "gpu1": "ready a"}

    play(
        act,
        node_settings("a", "b", policy=SHORT),
        desired("gpu0"),
        desired("gpu1"),
        seen=observation(0, 1),
    )


def test_a_stuck_process_keeps_its_instance_from_being_used_until_it_is_gone() -> None:
    async def act(scene: Scene) -> None:
        (await scene.lease("a")).release()
        scene.units.unkillable[GPU0] = (4712,)
        scene.fleet.unload(A)
        await scene.until(lambda: scene.states() == {"gpu0": "stuck a"})
        assert "4712" in scene.instance().reason
        with pytest.raises(Unavailable, match="stuck with a"):
            await scene.lease("b", wait_s=10)
        scene.units.unkillable.clear()
        scene.units.become("gpu0", ActiveState.INACTIVE)
        (await scene.lease("b")).release()

    play(act, node_settings("a", "b", policy=SHORT), desired("gpu0"))


# --- operators ------------------------------------------------------------------------------


def test_an_operator_pins_and_unpins_and_that_outlives_the_agent(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        (await scene.lease("a")).release()
        scene.fleet.pin(GPU0, pinned=True)
        with pytest.raises(Unavailable, match="pinned, runs a"):
            await scene.lease("b", wait_s=10)
        assert OperatorChoices(tmp_path).pinned(GPU0) is True
        scene.fleet.pin(GPU0, pinned=False)
        (await scene.lease("b")).release()
        with pytest.raises(UnknownInstance, match="there is no instance 'gpu7' here"):
            scene.fleet.pin(InstanceName("gpu7"), pinned=True)

    choices = OperatorChoices(tmp_path)
    play(act, node_settings("a", "b", policy=SHORT), desired("gpu0"), choices=choices)


def test_an_operator_drains_an_instance(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        lease = await scene.lease("a")
        scene.fleet.drain(GPU0, drained=True)
        assert scene.states() == {"gpu0": "draining a"}
        lease.release()
        await scene.until(lambda: scene.states() == {"gpu0": "stopped"})
        with pytest.raises(Unavailable, match="drained by an operator"):
            await scene.lease("a", wait_s=10)
        assert OperatorChoices(tmp_path).is_drained(GPU0)
        scene.fleet.drain(GPU0, drained=False)
        (await scene.lease("a")).release()

    choices = OperatorChoices(tmp_path)
    play(act, node_settings("a", policy=SHORT), desired("gpu0"), choices=choices)


def test_a_drain_taken_back_while_its_unit_stops_has_the_model_of_the_settings_again() -> None:
    async def act(scene: Scene) -> None:
        await scene.until(lambda: scene.states() == {"gpu0": "ready a"})
        scene.units.hold_stop.clear()
        scene.fleet.drain(GPU0, drained=True)
        await scene.until(lambda: scene.states() == {"gpu0": "stopping a"})
        scene.fleet.drain(GPU0, drained=False)
        await asyncio.sleep(5)
        scene.units.hold_stop.set()
        await scene.until(lambda: scene.states() == {"gpu0": "ready a"})
        assert scene.units.runs == [(GPU0, A), (GPU0, A)]

    play(act, node_settings("a", policy=SHORT, instances={"gpu0": "a"}), desired("gpu0", "a"))


def test_an_operator_says_where_a_model_goes() -> None:
    async def act(scene: Scene) -> None:
        (await scene.lease("a")).release()
        scene.fleet.load_on(B, GPU0)
        await scene.until(lambda: scene.states()["gpu0"] == "ready b")
        lease = await scene.lease("b")
        scene.fleet.load_on(A, GPU0)
        assert scene.states()["gpu0"] == "draining b"
        lease.release()
        await scene.until(lambda: scene.states()["gpu0"] == "ready a")
        scene.fleet.load_on(A, GPU1)
        await scene.until(lambda: scene.states()["gpu1"] == "ready a")
        assert scene.fleet.unload_instance(GPU1)
        await scene.until(lambda: scene.states()["gpu1"] == "stopped")
        assert not scene.fleet.unload_instance(GPU1)

    play(
        act,
        node_settings("a", "b", policy=SHORT),
        desired("gpu0"),
        desired("gpu1"),
        seen=observation(0, 1),
    )


def test_a_plan_says_what_would_be_done_and_why() -> None:
    async def act(scene: Scene) -> None:
        (await scene.lease("a")).release()
        plan: dict[str, Any] = scene.fleet.plan(B).to_json()
        assert (plan["outcome"], plan["instance"], plan["need_mib"]) == ("placed", "gpu0", 5000)
        assert plan["sites"] == [
            {
                "instance": "gpu0", "devices": ["GPU-0"], "new": False, "evicts": [], "busy": [],
                "possible": True, "reason": "", "may_pass": False, "free_mib": {"GPU-0": 8192},
            }
        ]  # fmt: skip
        assert scene.fleet.plan(A).to_json()["outcome"] == "joins"

    seen = observation(0, total_mib=8192, used_mib=0, needs_mib={"a": 5000, "b": 5000})
    play(act, node_settings("a", "b", policy=SHORT), desired("gpu0"), seen=seen)


def test_memory_of_a_model_that_loads_is_not_taken_for_somebody_elses() -> None:
    async def act(scene: Scene) -> None:
        scene.units.hold.clear()
        first = scene.scope.start(scene.lease("a"), name="a")
        await asyncio.sleep(60)
        # More than it was thought to need: what it takes beyond that is not for ever.
        scene.look(observation(0, total_mib=8192, used_mib=8000, needs_mib={"a": 5000, "b": 5000}))
        second = scene.scope.start(scene.lease("b"), name="b")
        await asyncio.sleep(60)
        scene.units.hold.set()
        (await first).release()
        scene.look(observation(0, total_mib=8192, used_mib=0, needs_mib={"a": 5000, "b": 5000}))
        (await second).release()

    seen = observation(0, total_mib=8192, used_mib=0, needs_mib={"a": 5000, "b": 5000})
    settings = node_settings("a", "b", policy=SHORT, instances={"gpu0": None})
    play(act, settings, desired("gpu0"), seen=seen)


# --- one thing at a time --------------------------------------------------------------------


def test_a_request_that_needs_room_loads_its_model_once_and_displaces_no_more_than_that() -> None:
    async def act(scene: Scene) -> None:
        for name in ("x", "y", "z", "w"):
            (await scene.lease(name)).release()
        before = len(scene.units.runs)
        (await scene.lease("m")).release()
        await asyncio.sleep(60)
        assert len(scene.units.runs) == before + 1
        assert len(scene.units.stops) == 2

    names = ("x", "y", "z", "w")
    needs = {**dict.fromkeys(names, 4000), "m": 8000}
    seen = observation(0, 1, total_mib=8192, used_mib=0, needs_mib=needs)
    settings = node_settings(*names, "m", policy=SHORT)
    play(act, settings, desired("gpu0"), desired("gpu1"), seen=seen)


def test_a_unit_that_its_watchdog_ended_runs_its_own_model_again() -> None:
    async def act(scene: Scene) -> None:
        (await scene.lease("a")).release()
        waiting = scene.scope.start(scene.lease("b", 100), name="b")
        scene.units.become("gpu0", ActiveState.DEACTIVATING, result="watchdog")
        assert scene.states() == {"gpu0": "loading a"}
        scene.units.restart_by_itself("gpu0")
        scene.units.become("gpu0", ActiveState.ACTIVE)
        (await waiting).release()
        assert scene.units.runs == [(GPU0, A), (GPU0, B)]

    play(act, node_settings("a", "b", policy=SHORT), desired("gpu0"))


def test_a_stop_that_is_refused_is_not_asked_for_without_a_pause() -> None:
    async def act(scene: Scene) -> None:
        for name in ("a", "b"):
            (await scene.lease(name)).release()
        scene.units.refuses_stops = True
        scene.fleet.unload(B)
        await asyncio.sleep(60)
        assert len(scene.units.stops) < 3
        scene.units.refuses_stops = False
        scene.look(scene.seen)
        await scene.until(lambda: scene.states() == {"gpu0": "ready a"})

    seen = observation(0, total_mib=8192, used_mib=0, needs_mib={"a": 2000, "b": 2000})
    play(act, node_settings("a", "b", policy=SHORT), desired("gpu0"), seen=seen)


def test_clients_that_take_turns_do_not_have_a_model_loaded_for_each_request() -> None:
    async def act(scene: Scene) -> None:
        clock = asyncio.get_running_loop().time
        answers = 0

        async def client(name: str) -> None:
            nonlocal answers
            while clock() < 2000:
                lease = await scene.lease(name)
                await asyncio.sleep(3)
                lease.release()
                answers += 1
                await asyncio.sleep(0.05)

        scene.units.load_s = 20
        await asyncio.gather(*(scene.scope.start(client(name), name=name) for name in ("a", "b")))
        assert len(scene.units.runs) < 50
        assert answers > 300

    play(act, node_settings("a", "b", policy=SHORT), desired("gpu0"))


def test_a_drain_is_called_off_when_nobody_waits_for_the_other_model_any_more() -> None:
    async def act(scene: Scene) -> None:
        stream = await scene.lease("a")
        await asyncio.sleep(100)
        with pytest.raises(Unavailable):
            await scene.lease("b", wait_s=40)
        assert scene.states() == {"gpu0": "draining a"}
        (await scene.lease("a", wait_s=10)).release()
        assert scene.states() == {"gpu0": "ready a"}
        stream.release()

    settings = node_settings(model("a", parallel=2), "b", policy=SHORT)
    play(act, settings, desired("gpu0"))


def test_a_load_that_fails_elsewhere_fails_nobody_who_waits_for_another() -> None:
    async def act(scene: Scene) -> None:
        scene.units.hold.clear()
        waiting = scene.scope.start(scene.lease("a"), name="a")
        await asyncio.sleep(1)
        scene.units.become("gpu1", ActiveState.FAILED, result="exit-code", status_text="oom")
        await asyncio.sleep(1)
        scene.units.hold.set()
        (await waiting).release()

    settings = node_settings("a", policy=SHORT, instances={"gpu0": "a", "gpu1": "a"})
    both = (desired("gpu0", "a"), desired("gpu1", "a"))
    play(act, settings, *both, seen=observation(0, 1))


# --- memory, as it is -----------------------------------------------------------------------


def test_a_model_that_takes_more_than_was_thought_is_known_to() -> None:
    async def act(scene: Scene) -> None:
        (await scene.lease("a")).release()
        found = observation(0, total_mib=8192, used_mib=5500, needs_mib=needs)
        gpu = found.inventory.gpus[0]
        reading = replace(gpu.reading, processes=(GpuProcess(pid=4711, memory_mib=5500),))
        held = replace(found.inventory, gpus=(replace(gpu, reading=reading),))
        await asyncio.sleep(30)
        scene.look(replace(found, inventory=held))
        waiting = scene.scope.start(scene.lease("b"), name="b")
        await scene.until(lambda: scene.units.stops == [GPU0])
        scene.seen = observation(0, total_mib=8192, used_mib=0, needs_mib=needs)
        (await waiting).release()

    needs = {"a": 4000, "b": 4000}
    seen = observation(0, total_mib=8192, used_mib=0, needs_mib=needs)
    play(act, node_settings("a", "b", policy=SHORT), desired("gpu0"), seen=seen)


def test_a_start_whose_memory_is_free_waits_for_nobodys_requests() -> None:
    async def act(scene: Scene) -> None:
        stream = await scene.lease("a")
        await asyncio.sleep(100)
        scene.fleet.load_on(B, GPU0)
        assert scene.states()["gpu0"] == "draining a"
        (await scene.lease("c", wait_s=60)).release()
        assert scene.states()["gpu0"] == "draining a"
        stream.release()

    needs = {"a": 2000, "b": 2000, "c": 2000}
    seen = observation(0, total_mib=8192, used_mib=2000, needs_mib=needs)
    play(act, node_settings("a", "b", "c", policy=SHORT), desired("gpu0"), seen=seen)


def test_what_others_use_of_the_machines_memory_counts() -> None:
    async def act(scene: Scene) -> None:
        with pytest.raises(Unavailable, match=r"the machine's memory: 2\.0 GiB free of 16\.0 GiB"):
            await scene.lease("a")

    found = observation(needs_mib={"a": 10_000})
    host = replace(found.host, memory_total_mib=16 * 1024, memory_available_mib=2 * 1024)
    play(act, node_settings("a", policy=SHORT), desired("cpu0"), seen=replace(found, host=host))
