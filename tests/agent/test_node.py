"""Settings, fleet and observations together."""

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from rolemesh.agent.fleet import Fleet
from rolemesh.agent.host import read_host
from rolemesh.agent.instance_files import InstanceFiles
from rolemesh.agent.model_check import ModelProblems
from rolemesh.agent.node import Node
from rolemesh.agent.observation import HostObservation
from rolemesh.errors import Unavailable
from rolemesh.names import ModelId, NodeId
from rolemesh.runtime.tasks import TaskScope
from tests.agent.builders import inventory, node_settings
from tests.fakes.units import FakeUnits
from tests.lab.poll import eventually

A = ModelId("a")


def observation(*gpus: int, problem: str = "") -> HostObservation:
    return HostObservation(
        inventory=inventory(*gpus),
        host=read_host(),
        model_problems=ModelProblems(models={A: problem} if problem else {}),
    )


@pytest.fixture
async def fleet(short_path: Path) -> AsyncIterator[Fleet]:
    files = InstanceFiles.below(short_path)
    files.prepare()
    async with TaskScope() as scope:
        yield Fleet(control=FakeUnits(files), files=files, scope=scope, settings=node_settings("a"))


def node_with(fleet: Fleet, *gpus: int, problem: str = "") -> Node:
    node = Node(
        settings=node_settings("a"),
        fleet=fleet,
        observation=observation(*gpus, problem=problem),
    )
    node.start()
    return node


def names(node: Node) -> list[str]:
    return [each.view.name for each in node.view().fleet.instances]


async def test_a_gpu_that_appears_gets_an_instance(fleet: Fleet) -> None:
    node = node_with(fleet, 0)
    assert names(node) == ["gpu0"]
    node.observed(observation(0, 1))
    assert names(node) == ["gpu0", "gpu1"]


async def test_what_keeps_a_model_from_loading_is_known_to_the_fleet(fleet: Fleet) -> None:
    node = node_with(fleet, 0, problem="no such file")
    with pytest.raises(Unavailable, match="no such file"):
        await fleet.lease(A, cost=1, wait_s=5)
    node.observed(observation(0))
    (await fleet.lease(A, cost=1, wait_s=5)).release()


async def test_new_settings_are_followed_and_told(fleet: Fleet) -> None:
    node = node_with(fleet, 0)
    told: list[int] = []
    node.subscribe(lambda: told.append(len(node.view().settings.models)))
    node.settings_changed(node_settings("a", "b"))
    await eventually(lambda: told == [2], what="the change is told once")


async def test_changes_that_come_together_are_told_once(fleet: Fleet) -> None:
    node = node_with(fleet, 0)
    told: list[bool] = []
    node.subscribe(lambda: told.append(True))
    (await fleet.lease(A, cost=1, wait_s=5)).release()
    await eventually(lambda: told, what="something is told")
    assert len(told) == 1


async def test_what_a_reload_cannot_change_is_said(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    node = node_with(fleet, 0)
    node.settings_changed(replace(node_settings("a"), node_id=NodeId("other")))
    assert caplog.messages == ["node_id changed: that takes effect at the next start"]
    assert node.view().settings.node_id == "box"
