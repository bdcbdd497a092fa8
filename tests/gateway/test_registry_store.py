import asyncio
import json
from pathlib import Path

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.gateway import registry_store
from rolemesh.gateway.registry import NodeState, Registry
from rolemesh.gateway.registry_store import RegistryStore
from rolemesh.runtime.state import StateFile
from rolemesh.runtime.tasks import TaskScope
from tests.gateway.builders import report
from tests.lab.poll import eventually


class World:
    """A registry that is kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.registry = Registry(stale_after_s=30, on_change=self.changed, on_silent=lambda _: None)
        self.store = RegistryStore(StateFile(path), self.registry)

    def changed(self) -> None:
        self.store.note_change()

    def register(self, node_id: str) -> None:
        made = report(node_id)
        self.registry.register(made, UpstreamAddress.parse_url(made.base_url))

    def saved(self) -> list[str]:
        if not self.path.exists():
            return []
        return [node["node_id"] for node in json.loads(self.path.read_text())["nodes"]]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "registry.json")


async def test_what_is_known_survives_a_restart(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_store, "SETTLE_S", 0.01)
    async with TaskScope() as scope:
        _ = scope.start(world.store.run(), name="save")
        world.register("a")
        await eventually(lambda: world.saved() == ["a"], what="it is saved")
        world.register("b")
        await eventually(lambda: world.saved() == ["a", "b"], what="both are saved")
    again = World(world.path)
    again.store.restore()
    assert {node.state for node in again.registry.nodes.values()} == {NodeState.RESTORED}
    assert set(again.registry.nodes) == {"a", "b"}


async def test_changes_are_saved_at_the_end_without_waiting(world: World) -> None:
    async with TaskScope() as scope:
        _ = scope.start(world.store.run(), name="save")
        await asyncio.sleep(0)
        world.register("a")
        assert world.saved() == []
    assert world.saved() == ["a"]


async def test_nothing_to_restore_is_no_problem(world: World) -> None:
    world.store.restore()
    assert world.registry.nodes == {}
    assert world.store.problem == ""


@pytest.mark.parametrize("text", ["{", '{"nodes": 1}', '{"nodes": [{"node_id": 1}]}'])
async def test_a_state_that_cannot_be_understood_is_set_aside(world: World, text: str) -> None:
    world.path.write_text(text)
    world.store.restore()
    assert world.registry.nodes == {}
    assert world.path.with_suffix(".json.corrupt").read_text() == text
    assert not world.path.exists()


async def test_what_is_not_saved_is_a_problem_that_people_are_told(tmp_path: Path) -> None:
    world = World(tmp_path / "gone" / "registry.json")
    async with TaskScope() as scope:
        _ = scope.start(world.store.run(), name="save")
        await asyncio.sleep(0)
        world.register("a")
    assert "registry.json not saved since" in world.store.problem


async def test_what_is_held_is_saved_once_and_then_left_to_another_process(world: World) -> None:
    async with TaskScope() as scope:
        _ = scope.start(world.store.run(), name="save")
        await asyncio.sleep(0)
        world.register("a")
        await world.store.hold()
        assert world.saved() == ["a"]
        world.register("b")
    assert world.saved() == ["a"]


async def test_what_is_held_no_more_is_saved_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_store, "SETTLE_S", 0.01)
    async with TaskScope() as scope:
        _ = scope.start(world.store.run(), name="save")
        await world.store.hold()
        world.register("a")
        world.store.unhold()
        await eventually(lambda: world.saved() == ["a"], what="it is saved")
