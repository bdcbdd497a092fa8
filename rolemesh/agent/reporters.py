"""The links to all gateways: each told by a reporter of its own."""

import asyncio
from collections.abc import Callable

from rolemesh.address import UpstreamAddress
from rolemesh.agent.base_url import Listening
from rolemesh.agent.reporter import BuildReport, LinkState, Reporter
from rolemesh.config.settings import GatewayLink, NodeSettings
from rolemesh.names import NodeId
from rolemesh.runtime.tasks import TaskScope


class Reporters:
    """Owner of the links; `apply` starts and ends them as the settings say."""

    def __init__(
        self,
        *,
        scope: TaskScope,
        node_id: NodeId,
        listening: Listening,
        locate: Callable[[GatewayLink], UpstreamAddress],
        build_report: BuildReport,
        on_link_change: Callable[[], None],
    ) -> None:
        """`locate` says where a link leads, and what verifies it now."""
        self._scope = scope
        self._node_id = node_id
        self._listening = listening
        self._locate = locate
        self._build_report = build_report
        self._on_link_change = on_link_change
        self._links: dict[GatewayLink, tuple[Reporter, asyncio.Task[None]]] = {}

    def listens_on(self, listening: Listening) -> None:
        """Follow other addresses listened on, which gateways are to use from now on."""
        if listening != self._listening:
            self._listening = listening
            for reporter, _ in self._links.values():
                reporter.listens_on(listening)

    def apply(self, settings: NodeSettings) -> None:
        """Report to the gateways of `settings`, and to no others any more."""
        for link in tuple(self._links):
            if link not in settings.gateways:
                _ = self._scope.start(self._end(link), name=f"leave {link.url}")
        for link in settings.gateways:
            if link in self._links:
                reporter = self._links[link][0]
                reporter.gateway = self._locate(link)
                reporter.advertises(settings.advertise_url)
            else:
                self._begin(link, settings)

    def node_changed(self) -> None:
        """Learn that a report would differ from the last one."""
        for reporter, _ in self._links.values():
            reporter.node_changed()

    def summary(self) -> str:
        """Return how many gateways take this node's reports, and what the others say."""
        reporters = [reporter for reporter, _ in self._links.values()]
        registered = sum(each.state is LinkState.REGISTERED for each in reporters)
        problems = [
            f"{each.link.url} {each.state.value}: {each.problem}"
            for each in reporters
            if each.problem
        ]
        counts = f"{registered}/{len(reporters)}"
        return f"{counts} ({', '.join(problems)})" if problems else counts

    async def hand_over(self) -> None:
        """End all links, telling nobody: another process of this agent goes on."""
        tasks = [task for _, task in self._links.values()]
        self._links.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def leave(self) -> None:
        """End all links, telling the gateways, in parallel."""
        await asyncio.gather(*(self._end(link) for link in tuple(self._links)))

    def _begin(self, link: GatewayLink, settings: NodeSettings) -> None:
        reporter = Reporter(
            link=link,
            gateway=self._locate(link),
            node_id=self._node_id,
            advertise_url=settings.advertise_url,
            listening=self._listening,
            build_report=self._build_report,
            on_link_change=self._on_link_change,
        )
        task = self._scope.start(reporter.run(), name=f"report to {link.url}")
        self._links[link] = (reporter, task)

    async def _end(self, link: GatewayLink) -> None:
        reporter, task = self._links.pop(link)
        task.cancel()
        await asyncio.wait((task,))
        await reporter.leave()
