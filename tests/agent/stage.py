"""An agent without processes: fake units, fake llama-servers, everything between them real."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from rolemesh.agent.access import AgentAccess
from rolemesh.agent.desired import DesiredInstance
from rolemesh.agent.fleet import Fleet
from rolemesh.agent.host import read_host
from rolemesh.agent.inference import Inference
from rolemesh.agent.instance_files import InstanceFiles
from rolemesh.agent.model_check import ModelProblems
from rolemesh.agent.node_api import NodeApi
from rolemesh.agent.observation import HostObservation
from rolemesh.agent.report import NodeView
from rolemesh.agent.request_headers import BOUNDS
from rolemesh.config.settings import Limits, Listen, NodeSettings, Timeouts
from rolemesh.names import InstanceName
from rolemesh.relay.application import open_application
from rolemesh.relay.inbound import InboundServer
from rolemesh.relay.paths import inference_paths
from rolemesh.relay.serving import accepting
from rolemesh.relay.upstream import UpstreamPool
from rolemesh.runtime.listeners import bind
from rolemesh.runtime.tasks import TaskScope
from tests.agent.builders import inventory
from tests.fakes.llama_server import FakeLlamaServer, fake_llama_server
from tests.fakes.units import FakeUnits

TOKEN = "t0ken-t0ken-t0ken"


class AgentStage:
    """A served agent; `http` is a client of it."""

    def __init__(self, settings: NodeSettings, files: InstanceFiles, scope: TaskScope) -> None:
        self.settings = settings
        self.units = FakeUnits(files)
        self.llama = FakeLlamaServer()
        self.problems = ModelProblems(models={})
        self.fleet = Fleet(control=self.units, files=files, scope=scope, settings=settings)
        self.inventory = inventory(0)
        self.api: NodeApi
        self.http: aiohttp.ClientSession

    async def renumber(self) -> None:
        """Let the next GPU be gpu0."""
        self.inventory = inventory(0)

    def view(self) -> NodeView:
        return NodeView(
            settings=self.settings,
            fleet=self.fleet.snapshot(),
            host=HostObservation(
                inventory=self.inventory, host=read_host(), model_problems=self.problems
            ),
            now=0.0,
        )


@asynccontextmanager
async def open_agent(
    folder: Path, settings: NodeSettings, *instances: DesiredInstance, bounds: Timeouts = BOUNDS
) -> AsyncIterator[AgentStage]:
    """Serve an agent on a free port of loopback, its instances with one fake llama-server."""
    files = InstanceFiles.below(folder)
    files.prepare()
    async with TaskScope() as scope:
        stage = AgentStage(settings, files, scope)
        stage.fleet.start(instances)
        access = AgentAccess(settings, token=TOKEN, hosts=settings.listen.host)
        pool = UpstreamPool()
        inference = Inference(
            node_id=settings.node_id,
            fleet=stage.fleet,
            files=files,
            pool=pool,
            access=access,
            paths=inference_paths(settings.paths),
            bounds=bounds,
        )
        api = stage.api = NodeApi(
            access=access,
            fleet=stage.fleet,
            view=stage.view,
            history=inference.log.history,
            started_at=1,
            renumber=stage.renumber,
        )
        async with open_application(
            api.by_key(), max_body_bytes=1 << 16, admit=lambda *_: None
        ) as application:
            inbound = InboundServer(
                make_job=inference,
                admit=lambda peer, field: None,
                paths=inference.paths,
                other=application,
                limits=Limits(),
                scope=scope,
            )
            sockets = bind(Listen(port=0))
            url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
            socket = files.socket(InstanceName(instances[0].name))
            async with (
                fake_llama_server(stage.llama, socket),
                accepting(sockets, inbound),
                aiohttp.ClientSession(url) as stage.http,
            ):
                yield stage
            await inbound.drain(1.0)
        pool.close()
