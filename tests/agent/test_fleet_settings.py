"""How the fleet follows settings, inventory and what it finds running; in virtual time."""

import asyncio
from dataclasses import replace

import pytest

from rolemesh.agent.desired import DesiredInstance
from rolemesh.agent.observation import HostObservation
from rolemesh.agent.operator_choices import OperatorChoices
from rolemesh.agent.unit_control import ActiveState
from rolemesh.errors import Unavailable
from rolemesh.llama.command import settings_hash
from rolemesh.llama.server_facts import ServerFacts, write_facts
from rolemesh.names import InstanceName
from tests.agent.builders import desired, model, node_settings, observation
from tests.agent.test_fleet_core import GPU0, SHORT, A, B, Scene, play

ABSENT = desired("gpu0", "a", missing="gpu0 is not there")


def absent(instance: DesiredInstance, why: str = "gpu0 is not there any more") -> DesiredInstance:
    return replace(instance, devices=(), missing=why)


def lost(seen: HostObservation, number: int) -> HostObservation:
    """Return what is seen once the driver calls a card lost."""
    found = seen.inventory
    gone = {number: "fallen off the bus"}
    return replace(seen, inventory=replace(found, lost={number: f"GPU-{number}"}, gone=gone))


def test_what_the_settings_name_starts_as_soon_as_its_gpu_is_there() -> None:
    async def act(scene: Scene) -> None:
        assert scene.units.runs == []
        scene.fleet.apply(scene.settings, (desired("gpu0", "a"),), observation(0))
        await scene.until(lambda: scene.states() == {"gpu0": "ready a"})

    settings = node_settings("a", policy=SHORT, instances={"gpu0": "a"})
    play(act, settings, absent(ABSENT), seen=observation())


def test_what_the_settings_name_is_tried_again_when_its_memory_was_not_free() -> None:
    async def act(scene: Scene) -> None:
        await scene.until(lambda: bool(scene.fleet.snapshot().failures))
        scene.look(observation(0, total_mib=8192, used_mib=0, needs_mib={"a": 6000}))
        await scene.until(lambda: scene.states() == {"gpu0": "ready a"})

    settings = node_settings("a", policy=SHORT, instances={"gpu0": "a"})
    seen = observation(0, total_mib=8192, used_mib=6000, needs_mib={"a": 6000})
    play(act, settings, desired("gpu0", "a"), seen=seen)


def test_what_is_due_displaces_no_neighbour() -> None:
    async def act(scene: Scene) -> None:
        await scene.until(lambda: scene.states()["gpu0-a"] == "ready a")
        await asyncio.sleep(300)
        assert scene.states() == {"gpu0-a": "ready a", "gpu0-b": "stopped"}

    first, second = (
        replace(desired("gpu0", name), name=InstanceName(f"gpu0-{name}")) for name in ("a", "b")
    )
    settings = node_settings("a", "b", policy=SHORT, instances={"gpu0-a": "a", "gpu0-b": "b"})
    seen = observation(0, total_mib=8192, used_mib=0, needs_mib={"a": 5000, "b": 5000})
    play(act, settings, first, second, seen=seen)


@pytest.mark.parametrize("problem", ["no such file", ""], ids=["broken", "too large"])
def test_a_model_that_nobody_has_looked_at_yet_displaces_nothing(problem: str) -> None:
    async def act(scene: Scene) -> None:
        await scene.until(lambda: scene.states() == {"gpu0": "ready a"})
        settings = node_settings("a", "b", policy=SHORT, instances={"gpu0": "b"})
        scene.fleet.apply(settings, (desired("gpu0", "b"),), scene.seen)
        problems = {"b": problem} if problem else {}
        needs = {"a": 5000, "b": 90_000}
        found = observation(0, total_mib=8192, used_mib=0, needs_mib=needs, problems=problems)
        checked = replace(found.model_problems, checked=settings.models)
        scene.look(replace(found, model_problems=checked))
        await asyncio.sleep(300)
        assert scene.states() == {"gpu0": "ready a"}

    settings = node_settings("a", policy=SHORT, instances={"gpu0": "a"})
    seen = observation(0, total_mib=8192, used_mib=0, needs_mib={"a": 5000})
    seen = replace(seen, model_problems=replace(seen.model_problems, checked=settings.models))
    play(act, settings, desired("gpu0", "a"), seen=seen)


def test_an_instance_that_another_agent_gets_is_emptied_and_then_not_looked_at() -> None:
    async def act(scene: Scene) -> None:
        (await scene.lease("a")).release()
        foreign = desired("gpu0", missing="gpu0 is used by another", is_foreign=True)
        scene.fleet.apply(scene.settings, (foreign,), scene.seen)
        await scene.until(lambda: scene.states() == {"gpu0": "stopped"})
        scene.units.become("gpu0", ActiveState.ACTIVE)  # the other agent's
        assert scene.states() == {"gpu0": "stopped"}
        scene.files.write_parameters(GPU0, B, ("GPU-0",))
        scene.fleet.apply(scene.settings, (desired("gpu0"),), scene.seen)
        assert scene.states() == {"gpu0": "ready b"}, "it is ours now, as it is"

    play(act, node_settings("a", "b", policy=SHORT), desired("gpu0"))


def test_what_an_earlier_agent_left_running_beyond_the_settings_is_ended() -> None:
    async def act(scene: Scene) -> None:
        scene.files.write_parameters(InstanceName("gpu0-old"), A, ("GPU-0",))
        scene.units.become("gpu0-old", ActiveState.ACTIVE)
        scene.units.become("gpu0-hand", ActiveState.ACTIVE)  # without parameters: an admin's
        scene.fleet.apply(scene.settings, (desired("gpu0"),), scene.seen)
        await scene.until(lambda: scene.units.stops == [InstanceName("gpu0-old")])
        await asyncio.sleep(60)
        assert scene.units.stops == [InstanceName("gpu0-old")]
        assert scene.states() == {"gpu0": "stopped"}

    play(act, node_settings("a", policy=SHORT, instances={"gpu0": None}), desired("gpu0"))


def test_a_drained_instance_is_emptied_by_the_next_agent_too() -> None:
    async def act(scene: Scene) -> None:
        scene.files.write_parameters(GPU0, A, ("GPU-0",))
        scene.units.become("gpu0", ActiveState.ACTIVE)
        scene.fleet.apply(scene.settings, (desired("gpu0"),), scene.seen)
        await scene.until(lambda: scene.units.stops == [GPU0])

    choices = OperatorChoices()
    choices.drain(GPU0, drained=True)
    play(act, node_settings("a", policy=SHORT), choices=choices)


def test_a_lost_card_ends_whatever_runs_over_it() -> None:
    async def act(scene: Scene) -> None:
        (await scene.lease("a")).release()
        assert scene.instance("gpu0").devices == ("GPU-0", "GPU-1")
        gone = lost(observation(0, total_mib=8192, used_mib=0, needs_mib={"a": 12000}), 1)
        missing = absent(desired("gpu1", is_lost=True), "gpu1 is lost")
        scene.fleet.apply(scene.settings, (desired("gpu0"), missing), gone)
        await scene.until(lambda: scene.states() == {"gpu0": "stopped", "gpu1": "stopped"})

    seen = observation(0, 1, total_mib=8192, used_mib=0, needs_mib={"a": 12000})
    play(act, node_settings("a", policy=SHORT), desired("gpu0"), desired("gpu1"), seen=seen)


def test_a_moment_without_readings_ends_nothing() -> None:
    async def act(scene: Scene) -> None:
        for name in ("a", "b"):
            (await scene.lease(name)).release()
        found = observation()
        blind = replace(found, inventory=replace(found.inventory, lost={0: "GPU-0"}))
        scene.fleet.apply(scene.settings, (absent(desired("gpu0")),), blind)
        scene.fleet.apply(scene.settings, (desired("gpu0"),), scene.seen)
        await asyncio.sleep(30)
        assert scene.states() == {"gpu0": "ready a", "gpu0-2": "ready b"}

    seen = observation(0, total_mib=8192, used_mib=0, needs_mib={"a": 2000, "b": 2000})
    play(act, node_settings("a", "b", policy=SHORT), desired("gpu0"), seen=seen)


def test_an_instance_with_other_gpus_runs_its_model_there() -> None:
    async def act(scene: Scene) -> None:
        await scene.until(lambda: scene.states() == {"gpu0": "ready a"})
        narrow = desired("gpu0", "a", pinned=True, is_fixed=True)
        scene.fleet.apply(scene.settings, (narrow,), scene.seen)
        await scene.until(lambda: len(scene.units.runs) == 2)
        told = scene.files.read_parameters(GPU0)
        assert told is not None
        assert told.devices == ("GPU-0",)

    wide = replace(desired("gpu0", "a", pinned=True, is_fixed=True), devices=("GPU-0", "GPU-1"))
    settings = node_settings("a", policy=SHORT, instances={"gpu0": "a"})
    play(act, settings, wide, seen=observation(0, 1, total_mib=8192, needs_mib={"a": 100}))


def test_the_settings_have_the_last_word_on_a_pin_that_they_change() -> None:
    async def act(scene: Scene) -> None:
        scene.fleet.pin(GPU0, pinned=False)
        scene.fleet.apply(scene.settings, (desired("gpu0", pinned=True),), scene.seen)
        assert scene.instance().view.pinned

    play(act, node_settings("a", policy=SHORT), desired("gpu0"))


def test_a_further_instance_that_fails_leaves_nothing_behind() -> None:
    async def act(scene: Scene) -> None:
        (await scene.lease("a")).release()
        scene.units.failing[B] = "out of memory"
        with pytest.raises(Unavailable, match="out of memory"):
            await scene.lease("b")
        await scene.until(lambda: scene.states() == {"gpu0": "ready a"})
        assert scene.units.stops == [InstanceName("gpu0-2")]

    seen = observation(0, total_mib=8192, used_mib=0, needs_mib={"a": 2000, "b": 2000})
    play(act, node_settings("a", "b", policy=SHORT), desired("gpu0"), seen=seen)


def test_a_spread_that_leaves_holds_its_gpus_until_it_has_left() -> None:
    async def act(scene: Scene) -> None:
        lease = await scene.lease("s")
        await asyncio.sleep(100)
        first = scene.scope.start(scene.lease("a"), name="a")
        await scene.until(lambda: scene.states()["gpu0"] == "draining s")
        second = scene.scope.start(scene.lease("b"), name="b")
        await asyncio.sleep(60)
        assert [each for each in scene.units.runs if each[1] == B] == []
        lease.release()
        (await first).release()
        (await second).release()
        assert scene.states() == {"gpu0": "ready a", "gpu1": "ready b"}

    needs = {"s": 12000, "a": 5000, "b": 5000}
    settings = node_settings("s", "a", "b", policy=SHORT, instances={"gpu0": None, "gpu1": None})
    seen = observation(0, 1, total_mib=8192, used_mib=0, needs_mib=needs)
    play(act, settings, desired("gpu0"), desired("gpu1"), seen=seen)


def test_models_that_need_other_numbers_of_gpus_move() -> None:
    async def act(scene: Scene) -> None:
        await scene.until(lambda: scene.states()["gpu0"] == "ready a")
        settings = node_settings(model("a", gpus=2), policy=SHORT, instances={"gpu0": "a"})
        both = (desired("gpu0", "a"), desired("gpu1"))
        scene.fleet.apply(settings, both, scene.seen)
        await scene.until(lambda: len(scene.units.runs) == 2)
        told = scene.files.read_parameters(GPU0)
        assert told is not None
        assert told.devices == ("GPU-0", "GPU-1")

    settings = node_settings("a", policy=SHORT, instances={"gpu0": "a"})
    seen = observation(0, 1, total_mib=8192, used_mib=0, needs_mib={"a": 4000})
    play(act, settings, desired("gpu0", "a"), desired("gpu1"), seen=seen)


@pytest.mark.parametrize("changed", [False, True])
def test_what_was_started_with_other_settings_is_restarted_once_it_is_adopted(
    changed: bool,
) -> None:
    async def act(scene: Scene) -> None:
        started_with = node_settings(model("a", parallel=1 if changed else 8))
        path = scene.files.sockets / GPU0 / "server.json"
        path.parent.mkdir(parents=True)
        write_facts(
            path,
            ServerFacts(
                version="1",
                server_pid=1,
                model_id=A,
                generation=1,
                args_hash="x",
                build="b",
                settings_hash=settings_hash(started_with, started_with.models[A]),
            ),
        )
        scene.files.write_parameters(GPU0, A, ("GPU-0",))
        scene.units.become("gpu0", ActiveState.ACTIVE)
        scene.fleet.apply(scene.settings, (desired("gpu0"),), scene.seen)
        await asyncio.sleep(60)
        assert scene.states() == {"gpu0": "ready a"}
        assert scene.units.runs == ([(GPU0, A)] if changed else [])

    play(act, node_settings(model("a", parallel=8), policy=SHORT))


def test_the_truth_of_what_a_unit_runs_is_what_it_says_itself() -> None:
    async def act(scene: Scene) -> None:
        path = scene.files.sockets / GPU0 / "server.json"
        path.parent.mkdir(parents=True)
        facts = ServerFacts(
            version="1", server_pid=1, model_id=B, generation=1, args_hash="x", build="b"
        )
        write_facts(path, facts)
        scene.files.write_parameters(GPU0, A, ("GPU-0",))
        scene.units.become("gpu0", ActiveState.ACTIVE)
        scene.fleet.apply(scene.settings, (desired("gpu0"),), scene.seen)
        assert scene.states() == {"gpu0": "ready b"}

    play(act, node_settings("a", "b", policy=SHORT))
