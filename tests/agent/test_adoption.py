"""Units that somebody else has started: their files are of this version, older, newer, or missing."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rolemesh.agent.unit_control import ActiveState
from rolemesh.llama.command import settings_hash
from rolemesh.names import ModelId
from tests.agent.builders import desired, model, node_settings
from tests.agent.test_fleet_core import GPU0, SHORT, Scene, play

A = ModelId("a")
SETTINGS = node_settings(model("a", parallel=3), "b", policy=SHORT)

# As rolemesh-llama 0.1.0 and the agent of that version write them; format 1 of both.
SERVER_JSON = """{"format": 1, "version": "0.1.0", "server_pid": 4712, "model_id": "a",
 "generation": 3, "args_hash": "9033ed0c9033ed0c", "build": "0.7.0 (build 11669)",
 "settings_hash": "%s"}"""
PARAMETERS_JSON = '{"model_id": "a", "devices": ["GPU-0"], "generation": 3}'


class Remains:
    """What is there of a unit that an agent finds when it starts."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        (scene.files.sockets / GPU0).mkdir(parents=True)

    def server_json(self, text: str) -> None:
        self._file.write_text(text)

    def parameters(self, text: str = PARAMETERS_JSON) -> None:
        self._scene.files.parameters_file(GPU0).write_text(text)

    @property
    def _file(self) -> Path:
        return self._scene.files.sockets / GPU0 / "server.json"

    def found(self, status_text: str = "", runs: str | None = None) -> None:
        """Let the unit run, and an agent find it."""
        self._scene.units.become("gpu0", ActiveState.ACTIVE, status_text=status_text)
        self._scene.fleet.apply(SETTINGS, (desired("gpu0", runs),), self._scene.seen)

    def shown(self) -> dict[str, object]:
        return self._scene.instance().to_json()


def adopt(act: Callable[[Scene, Remains], None]) -> None:
    """Run a test's act, and see that what was adopted was neither stopped nor started."""

    async def whole(scene: Scene) -> None:
        remains = Remains(scene)
        act(scene, remains)
        states = scene.states()
        await asyncio.sleep(120)
        assert scene.states() == states
        assert (scene.units.runs, scene.units.stops) == ([], [])

    play(whole, SETTINGS)


def of_0_1_0() -> str:
    return SERVER_JSON % settings_hash(SETTINGS, SETTINGS.models[A])


def test_files_of_format_1_are_understood() -> None:
    def act(scene: Scene, remains: Remains) -> None:
        remains.server_json(of_0_1_0())
        remains.parameters()
        remains.found()
        assert scene.states() == {"gpu0": "ready a"}
        shown = remains.shown()
        assert (shown["version"], shown["build"], shown["server_pid"]) == (
            *("0.1.0", "0.7.0 (build 11669)"),
            4712,
        )
        assert shown["version_problem"] is None
        assert shown["slots"] == 3

    adopt(act)


@pytest.mark.parametrize("status_text", ["serving a (from instances.gpu0.model of the node's)", ""])
def test_a_unit_without_server_json_is_adopted_by_what_it_was_told(status_text: str) -> None:
    def act(scene: Scene, remains: Remains) -> None:
        remains.parameters()
        remains.found(status_text)
        assert scene.states() == {"gpu0": "ready a"}
        assert remains.shown()["version"] is None
        assert "is older than that file" in str(remains.shown()["version_problem"])

    adopt(act)


def test_a_unit_that_was_told_nothing_is_adopted_by_what_it_says_of_itself() -> None:
    def act(scene: Scene, remains: Remains) -> None:
        remains.server_json(of_0_1_0())
        remains.found()
        assert scene.states() == {"gpu0": "ready a"}

    adopt(act)


def test_without_any_file_its_status_tells() -> None:
    def act(scene: Scene, remains: Remains) -> None:
        remains.found("serving a (from /run/rolemesh/llama/gpu0.json)")
        assert scene.states() == {"gpu0": "ready a"}

    adopt(act)


def test_of_several_words_the_units_own_counts_more_than_the_settings() -> None:
    def act(scene: Scene, remains: Remains) -> None:
        remains.found("serving a (from --parameters)", runs="b")
        assert scene.states() == {"gpu0": "ready a"}

    adopt(act)


def test_a_unit_that_says_nothing_is_left_alone_and_that_is_said() -> None:
    def act(scene: Scene, remains: Remains) -> None:
        remains.found("up and running")
        assert scene.states() == {"gpu0": "ready"}
        assert remains.shown()["reason"] == "it serves, but nothing tells which model"

    adopt(act)


def test_newer_formats_are_left_alone_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def act(scene: Scene, remains: Remains) -> None:
        remains.server_json(json.dumps({"format": 2, "version": "9.1.0", "engine": {}}))
        remains.parameters(json.dumps({"format": 2, "models": ["a"]}))
        remains.found("serving a (from /run/rolemesh/llama/gpu0.json)")
        assert scene.states() == {"gpu0": "ready a"}
        assert remains.shown()["version"] == "9.1.0"
        assert "has format 2" in str(remains.shown()["version_problem"])

    adopt(act)
    (said,) = [each.message for each in caplog.records if "has format 2" in each.message]
    assert said.startswith("gpu0 serves, but its version and build are not known: ")


def test_newer_keys_are_no_matter() -> None:
    def act(scene: Scene, remains: Remains) -> None:
        remains.server_json(of_0_1_0().replace("{", '{"engine": {}, '))
        remains.parameters(PARAMETERS_JSON.replace("{", '{"hosts": [], '))
        remains.found()
        assert scene.states() == {"gpu0": "ready a"}
        assert remains.shown()["version"] == "0.1.0"

    adopt(act)


def test_a_restart_that_nobody_saw_is_noticed_by_the_pid() -> None:
    async def act(scene: Scene) -> None:
        remains = Remains(scene)
        remains.server_json(of_0_1_0())
        remains.parameters()
        remains.found()
        remains.server_json(of_0_1_0().replace("0.1.0", "0.2.0"))
        scene.units.become("gpu0", ActiveState.ACTIVE, main_pid=4720)
        assert remains.shown()["version"] == "0.2.0"
        assert scene.states() == {"gpu0": "ready a"}

    play(act, SETTINGS)
