"""Whether static upstreams answer, and whether doubtful nodes still do.

Static upstreams are probed in the background, more often while down; a request that fails has its
upstream probed at once. Whoever lists aliases may ask for a fresh look, for a bounded time: one
dead upstream never delays a listing by more than that.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final

from rolemesh.address import UpstreamAddress
from rolemesh.errors import UpstreamError
from rolemesh.gateway.registry import NodeState, Registry
from rolemesh.gateway.routing_table import UNPROBED, Health
from rolemesh.names import NodeId
from rolemesh.relay.fetch import FetchReply, fetch
from rolemesh.runtime.tasks import TaskScope

PROBE_TIMEOUT_S: Final = 2.0
PERIOD_UP_S: Final = 5.0
PERIOD_DOWN_S: Final = 1.0
FRESH_S: Final = 1.0
LISTING_WAIT_S: Final = 0.3


class HealthWatch:
    """Owner of what is known about static upstreams; `on_change` follows every change."""

    def __init__(
        self, *, registry: Registry, on_change: Callable[[], None], scope: TaskScope
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._registry = registry
        self._on_change = on_change
        self._scope = scope
        self._health: dict[str, Health] = {}
        self._probed_at: dict[str, float] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}

    @property
    def known(self) -> Mapping[str, Health]:
        """Return what is known, by base URL."""
        return self._health

    def watch(self, urls: Iterable[str]) -> None:
        """Watch exactly these upstreams from now on."""
        wanted = set(urls)
        for url in set(self._watchers) - wanted:
            self._watchers.pop(url).cancel()
            self._health.pop(url, None)
            self._probed_at.pop(url, None)
        for url in wanted - set(self._watchers):
            self._watchers[url] = self._scope.start(self._watch(url), name=f"watch {url}")

    async def _watch(self, url: str) -> None:
        while True:
            await asyncio.wait([self._probe(url)])
            up = not self._health.get(url, UNPROBED).down
            await asyncio.sleep(PERIOD_UP_S if up else PERIOD_DOWN_S)

    async def refresh(self) -> None:
        """Look again at every upstream not seen within FRESH_S; takes at most LISTING_WAIT_S."""
        horizon = self._loop.time() - FRESH_S
        stale = [url for url in self._watchers if self._probed_at.get(url, 0.0) < horizon]
        if stale:
            await asyncio.wait([self._probe(url) for url in stale], timeout=LISTING_WAIT_S)

    def suspect(self, name: str, node_id: NodeId | None) -> None:
        """Probe an upstream at once because a request to it failed."""
        if node_id is None:
            if name in self._watchers:
                _ = self._probe(name)
        else:
            self.probe_node(node_id)

    def probe_node(self, node_id: NodeId) -> None:
        """Ask a node whether it is there; the registry learns the answer."""
        key = f"node {node_id}"
        if key not in self._probes:
            _ = self._start_probe(key, self._probe_node(node_id))

    def probe_restored(self) -> None:
        """Ask every node known from before this start."""
        for node_id, node in self._registry.nodes.items():
            if node.state is NodeState.RESTORED:
                self.probe_node(node_id)

    def _probe(self, url: str) -> asyncio.Task[None]:
        """Start a probe, or join the one under way."""
        return self._probes.get(url) or self._start_probe(url, self._probe_url(url))

    def _start_probe(self, key: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._scope.start(work, name=f"probe {key}")
        self._probes[key] = task
        task.add_done_callback(lambda _: self._probes.pop(key, None))
        return task

    async def _probe_url(self, url: str) -> None:
        health = await _look(UpstreamAddress.parse_url(url))
        self._probed_at[url] = self._loop.time()
        if url in self._watchers and self._health.get(url) != health:
            self._health[url] = health
            self._on_change()

    async def _probe_node(self, node_id: NodeId) -> None:
        node = self._registry.nodes.get(node_id)
        if node is None:
            return
        try:
            await fetch(node.address, "GET", "/health", timeout_s=PROBE_TIMEOUT_S)
        except UpstreamError:
            self._registry.did_not_answer(node_id)
        else:
            self._registry.answered(node_id)


async def _look(address: UpstreamAddress) -> Health:
    """Ask an upstream what every one of them offers: /v1/models.

    /health is asked only of one that has no such list: some (LiteLLM) answer it by asking their
    models, at a cost, each time.
    """
    try:
        reply = await fetch(address, "GET", "/v1/models", timeout_s=PROBE_TIMEOUT_S)
        if reply.status in (404, 405):
            reply = await fetch(address, "GET", "/health", timeout_s=PROBE_TIMEOUT_S)
    except UpstreamError as err:
        return Health(down=str(err))
    if reply.status < 500:
        return Health()  # also 401: it is there, and the request's own key will tell
    if _is_loading(reply):
        return Health(loading=True)
    return Health(down=f"{address} answers its health check with {reply.status}")


def _is_loading(reply: FetchReply) -> bool:
    """Tell whether a llama-server says that it still loads its model."""
    try:
        return bool(json.loads(reply.body)["error"]["message"] == "Loading model")
    except (ValueError, KeyError, TypeError):
        return False
