"""A rolemesh-llama of an earlier version under the present agent: adopted, served, switched, stopped."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.agent.child_supervisor import ChildSupervisor
from rolemesh.agent.fleet import Fleet
from rolemesh.agent.fleet_snapshot import InstanceSnapshot
from rolemesh.agent.instance import InstanceState
from rolemesh.agent.instance_files import InstanceFiles
from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import load_node
from rolemesh.names import InstanceName, ModelId
from rolemesh.relay.fetch import fetch
from rolemesh.runtime.tasks import TaskScope
from tests.agent.builders import desired
from tests.fakes.node_config import write_node_config
from tests.lab import history
from tests.lab.poll import eventually
from tests.lab.processes import is_running
from tests.system import earlier as earlier_versions

CPU0 = InstanceName("cpu0")
ONE, TWO = ModelId("one"), ModelId("two")
EARLIER: dict[str, Callable[[], str]] = {
    "without server.json": lambda: "f267b4164cee2d2b14c4c0c9448df6c28ae04a19",
    "the first with server.json": lambda: "e77990626947a2b2b1b1582a0174f8f88d27e62b",
    "another version": earlier_versions.last_commit_of_another_version,
}


@pytest.fixture(params=EARLIER)
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return where the packages of an earlier version are."""
    try:
        return history.take_out(EARLIER[request.param](), tmp_path / "earlier")
    except history.NoHistory as err:
        pytest.skip(str(err))


class Host:
    """A host on which units run an earlier rolemesh-llama; agents come and go."""

    def __init__(self, folder: Path, sources: Path, server: Path, models: dict[str, Path]) -> None:
        config = write_node_config(
            folder, program=server, models={key: {"path": each} for key, each in models.items()}
        )
        self.settings = load_node(ConfigSource(program="node", config=config)).settings
        self.files = InstanceFiles.below(folder / "run")
        self.files.prepare()
        command = history.old_command(sources, "rolemesh.llama")
        self.control = ChildSupervisor(
            directory=self.files.sockets,
            argv_of=lambda instance: (
                *(*command, instance, f"--config={config}"),
                f"--parameters={self.files.parameters_file(instance)}",
            ),
        )

    @contextlib.asynccontextmanager
    async def agent(self) -> AsyncIterator[Fleet]:
        """Let an agent look after the units, which outlive it."""
        async with TaskScope() as scope:
            fleet = Fleet(
                control=self.control, files=self.files, scope=scope, settings=self.settings
            )
            fleet.start((desired("cpu0"),))
            yield fleet
            fleet.end()

    async def says(self, model_id: ModelId) -> str:
        body = json.dumps({"model": model_id, "prompt": "a", "max_tokens": 3}).encode()
        address = UpstreamAddress.unix(str(self.files.socket(CPU0)))
        reply = await fetch(address, "POST", "/v1/completions", body=body, timeout_s=20)
        return str(json.loads(reply.body)["choices"][0]["text"]).strip()


def instance(fleet: Fleet) -> InstanceSnapshot:
    (only,) = fleet.snapshot().instances
    return only


async def test_an_earlier_rolemesh_llama_goes_on_under_this_agent(
    short_path: Path, earlier: Path, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    models = {"one": make_model("tiny-a"), "two": make_model("tiny-b")}
    host = Host(short_path, earlier, llama_server, models)
    async with host.control:
        host.files.write_parameters(CPU0, ONE, ())
        await host.control.start(CPU0)
        started = host.control.statuses()[CPU0].main_pid

        async with host.agent() as fleet:
            shown = instance(fleet)
            assert (shown.view.state, shown.view.model_id) == (InstanceState.READY, ONE)
            assert shown.main_pid == started
            assert (shown.facts is None) == bool(shown.version_problem)
            assert shown.facts is None or is_running(shown.facts.server_pid)
            with await fleet.lease(ONE, cost=1, wait_s=5):
                assert await host.says(ONE) == "Hello from tiny-a"
            assert host.control.statuses()[CPU0].main_pid == started, "it was not restarted"

        async with host.agent() as fleet:  # the next one finds it the same
            assert instance(fleet).main_pid == started
            fleet.load_on(TWO, CPU0)
            with await fleet.lease(TWO, cost=1, wait_s=30):
                assert await host.says(TWO) == "Hello from tiny-b"
            fleet.unload(TWO)
            await eventually(
                lambda: instance(fleet).view.state is InstanceState.STOPPED, what="it is stopped"
            )
        assert started is not None
        assert not is_running(started)
