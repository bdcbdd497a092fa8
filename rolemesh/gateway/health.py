"""Whether static upstreams answer, and whether doubtful nodes still do.

Static upstreams are probed in the background, more often while down; a request that fails has its
upstream probed at once. Whoever lists aliases may ask for a fresh look, for a bounded time: one
dead upstream never delays a listing by more than that.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from rolemesh.address import UpstreamAddress
from rolemesh.config.settings import ClientTls, ProxyAlias
from rolemesh.errors import UpstreamError
from rolemesh.gateway.registry import NodeState, Registry
from rolemesh.gateway.upstream_kinds import (
    MODELS_PATH,
    Answer,
    Health,
    Sight,
    health_of,
    next_question,
    read_answers,
)
from rolemesh.names import Alias, NodeId
from rolemesh.relay.fetch import fetch
from rolemesh.runtime.tasks import TaskScope

PROBE_TIMEOUT_S: Final = 2.0
PERIOD_UP_S: Final = 5.0
PERIOD_DOWN_S: Final = 1.0
FRESH_S: Final = 1.0
LISTING_WAIT_S: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """What is probed together: aliases that reach a URL with the same key and the same trust.

    `alias` is any of them.
    """

    url: str
    api_key: str | None = field(repr=False)
    tls: ClientTls | None
    alias: ProxyAlias = field(repr=False, compare=False)

    @classmethod
    def of(cls, alias: ProxyAlias) -> "_Place":
        """Return where an alias leads."""
        return cls(url=alias.proxy_url, api_key=alias.api_key, tls=alias.tls, alias=alias)


class HealthWatch:
    """Owner of what is known about static upstreams; `on_change` follows every change."""

    def __init__(
        self,
        *,
        registry: Registry,
        locate: Callable[[ProxyAlias], UpstreamAddress],
        on_change: Callable[[], None],
        scope: TaskScope,
    ) -> None:
        """`locate` says where an alias leads, and what verifies it now."""
        self._loop = asyncio.get_running_loop()
        self._registry = registry
        self._locate = locate
        self._on_change = on_change
        self._scope = scope
        self._aliases: tuple[ProxyAlias, ...] = ()
        self._health: dict[Alias, Health] = {}
        self._sights: dict[_Place, Sight] = {}
        self._probed_at: dict[_Place, float] = {}
        self._slow: set[_Place] = set()
        self._probes: dict[_Place | NodeId, asyncio.Task[None]] = {}
        self._watchers: dict[_Place, asyncio.Task[None]] = {}

    @property
    def known(self) -> Mapping[Alias, Health]:
        """Return what is known; an alias whose upstream was not looked at yet is not there."""
        return MappingProxyType(self._health)

    def watch(self, aliases: Iterable[ProxyAlias]) -> None:
        """Watch the upstreams of exactly these aliases from now on."""
        self._aliases = tuple(aliases)
        wanted = set(map(_Place.of, self._aliases))
        for place in set(self._watchers) - wanted:
            self._watchers.pop(place).cancel()
            self._sights.pop(place, None)
            self._probed_at.pop(place, None)
            self._slow.discard(place)
        for place in wanted - set(self._watchers):
            self._watchers[place] = self._scope.start(self._watch(place), name=f"watch {place.url}")
        self._judge()

    def _judge(self) -> bool:
        """Find out what is known of each alias; tells whether that is something new."""
        before = self._health
        self._health = {
            each.alias: health_of(sight, each.model or each.alias)
            for each in self._aliases
            if (sight := self._sights.get(_Place.of(each))) is not None
        }
        return self._health != before

    async def _watch(self, place: _Place) -> None:
        while True:
            await asyncio.wait([self._probe(place)])
            sight = self._sights.get(place)
            is_up = sight is not None and not sight.down and not sight.is_loading
            await asyncio.sleep(PERIOD_UP_S if is_up else PERIOD_DOWN_S)

    async def refresh(self) -> None:
        """Look again at every upstream not seen within FRESH_S; takes at most LISTING_WAIT_S.

        One that took longer than that the last time is not waited for.
        """
        horizon = self._loop.time() - FRESH_S
        stale = [place for place in self._watchers if self._probed_at.get(place, 0.0) < horizon]
        probes = {place: self._probe(place) for place in stale}
        awaited = [probe for place, probe in probes.items() if place not in self._slow]
        if awaited:
            await asyncio.wait(awaited, timeout=LISTING_WAIT_S)

    def suspect(self, name: str, node_id: NodeId | None) -> None:
        """Probe an upstream at once because a request to it failed."""
        if node_id is not None:
            _ = self.probe_node(node_id)
            return
        for place in self._watchers:
            if place.url == name:
                _ = self._probe(place)

    def probe_node(self, node_id: NodeId) -> asyncio.Task[None]:
        """Ask a node whether it is there; the registry learns the answer."""
        under_way = self._probes.get(node_id)
        if under_way is not None:
            return under_way
        return self._start_probe(node_id, self._probe_node(node_id), name=f"probe node {node_id}")

    def probe_restored(self) -> list[asyncio.Task[None]]:
        """Ask every node known from before this start; returns what ends with the answers."""
        restored = [
            node_id
            for node_id, node in self._registry.nodes.items()
            if node.state is NodeState.RESTORED
        ]
        return [self.probe_node(node_id) for node_id in restored]

    def _probe(self, place: _Place) -> asyncio.Task[None]:
        """Start a probe, or join the one under way."""
        under_way = self._probes.get(place)
        if under_way is not None:
            return under_way
        return self._start_probe(place, self._look_at(place), name=f"probe {place.url}")

    def _start_probe(
        self, key: _Place | NodeId, work: Coroutine[Any, Any, None], *, name: str
    ) -> asyncio.Task[None]:
        task = self._probes[key] = self._scope.start(work, name=name)
        task.add_done_callback(lambda _: self._probes.pop(key, None))
        return task

    async def _look_at(self, place: _Place) -> None:
        began = self._loop.time()
        try:
            sight = await _look(self._locate(place.alias), place.api_key)
        except UpstreamError as err:
            sight = Sight(name=place.url, down=str(err))
        now = self._probed_at[place] = self._loop.time()
        if place in self._watchers:
            is_slow = now - began > LISTING_WAIT_S
            (self._slow.add if is_slow else self._slow.discard)(place)
            self._sights[place] = sight
            if self._judge():
                self._on_change()

    async def _probe_node(self, node_id: NodeId) -> None:
        node = self._registry.nodes.get(node_id)
        if node is None:
            return
        try:
            await fetch(node.address, "GET", "/health", timeout_s=PROBE_TIMEOUT_S)
        except UpstreamError as err:
            self._registry.did_not_answer(node_id, str(err))
        else:
            self._registry.answered(node_id)


async def _look(address: UpstreamAddress, api_key: str | None) -> Sight:
    """Ask an upstream how it is; raises UpstreamError."""
    authorization = (("Authorization", f"Bearer {api_key}"),) if api_key else ()

    async def ask(path: str) -> Answer:
        reply = await fetch(address, "GET", path, fields=authorization, timeout_s=PROBE_TIMEOUT_S)
        location = dict(reply.fields).get(b"location", b"").decode("latin-1")
        return Answer(status=reply.status, body=reply.body, location=location)

    models = await ask(MODELS_PATH)
    path = next_question(models)
    second = None if path is None else await ask(path)
    return read_answers(str(address), models, second, has_key=api_key is not None)
