"""Keeps one gateway informed: registers, then beats; sooner when a model's state changes.

A gateway that is away is tried again with jittered backoff; one that lost its state, or knows
another life of this agent, asks for a new registration.
"""

import asyncio
import json
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any, Final

from rolemesh.address import UpstreamAddress
from rolemesh.agent.base_url import Listening, choose_base_url, find_local_address
from rolemesh.config.settings import GatewayLink
from rolemesh.errors import UpstreamBroke, UpstreamError
from rolemesh.names import NodeId
from rolemesh.relay.fetch import FetchReply, fetch
from rolemesh.runtime.log import fields
from rolemesh.wire import ModelReport, NodeReport

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 5.0
"""Between two heartbeats unless the gateway asks for another interval."""

CHANGE_DELAY_S: Final = 0.1
"""How long a change waits for others to travel with it."""

FIRST_BACKOFF_S: Final = 0.5
LONGEST_BACKOFF_S: Final = 10.0
REQUEST_TIMEOUT_S: Final = 5.0
LEAVE_TIMEOUT_S: Final = 1.0

_MUST_REGISTER: Final = frozenset({404, 409})

BuildReport = Callable[[str], NodeReport]
"""Makes the report for a gateway that shall reach this node at the given base URL."""


class LinkState(Enum):
    """How a gateway is reached."""

    UNTRIED = "not tried yet"
    AWAY = "away"
    REFUSED = "refused"
    REGISTERED = "registered"


class _Refused(Exception):
    """The gateway answered, and says no."""


class Reporter:
    """The link to one gateway; `run` until cancelled, then `leave`."""

    def __init__(
        self,
        *,
        link: GatewayLink,
        gateway: UpstreamAddress,
        node_id: NodeId,
        advertise_url: str | None,
        listening: Listening,
        build_report: BuildReport,
        on_link_change: Callable[[], None],
    ) -> None:
        """`gateway` is where the link leads; it may be replaced by what verifies it otherwise."""
        self.link = link
        self.gateway = gateway
        self.state = LinkState.UNTRIED
        self.problem = ""
        self._node_path = f"/v1/nodes/{node_id}"
        self._advertise_url = advertise_url
        self._listening = listening
        self._build_report = build_report
        self._on_link_change = on_link_change
        self._interval_s = INTERVAL_S
        self._changed = asyncio.Event()
        self._registered_as = ""
        self._told: tuple[ModelReport, ...] = ()

    def listens_on(self, listening: Listening) -> None:
        """Follow other addresses listened on, and tell the gateway soon."""
        self._listening = listening
        self._told = ()
        self._changed.set()

    def advertises(self, url: str | None) -> None:
        """Follow another address to be reached at, and tell the gateway soon."""
        if url != self._advertise_url:
            self._advertise_url = url
            self._told = ()
            self._changed.set()

    def node_changed(self) -> None:
        """Learn that a report would differ from the last one."""
        self._changed.set()

    async def run(self) -> None:
        """Register and beat for ever."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                await self._report()
            except _Refused as err:
                self._set_state(LinkState.REFUSED, str(err))
                backoff_s = LONGEST_BACKOFF_S
            except UpstreamError as err:
                self._set_state(LinkState.AWAY, str(err))
            else:
                self._set_state(LinkState.REGISTERED, "")
                backoff_s = FIRST_BACKOFF_S
                await self._next_beat()
                continue
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - only jitter
            backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)

    async def leave(self) -> None:
        """Tell the gateway that this node goes; whether that arrives or not."""
        if not self._registered_as:
            return
        try:
            await self._send("DELETE", self._node_path, None, timeout_s=LEAVE_TIMEOUT_S)
        except (UpstreamError, _Refused) as err:
            logger.info("%s was not told that this node leaves: %s", self.link.url, err)

    async def _report(self) -> None:
        base_url = self._advertise_url or choose_base_url(
            self._listening, await find_local_address(self.gateway)
        )
        if base_url != self._registered_as or not await self._beat(base_url):
            await self._register(base_url)

    async def _register(self, base_url: str) -> None:
        report = self._take_report(base_url)
        answer = await self._send("POST", "/v1/nodes/register", report.to_json())
        self._registered_as = base_url
        self._take_interval(answer)
        logger.info(
            "registered at %s",
            self.link.url,
            extra=fields(gateway=self.link.url, base_url=base_url),
        )

    async def _beat(self, base_url: str) -> bool:
        """Send a heartbeat; tells whether the gateway knows this life of the agent."""
        report = self._take_report(base_url)
        answer = await self._send("POST", f"{self._node_path}/heartbeat", report.heartbeat_json())
        if answer is None:
            return False
        self._take_interval(answer)
        return True

    def _take_report(self, base_url: str) -> NodeReport:
        self._changed.clear()
        report = self._build_report(base_url)
        self._told = _what_routing_sees(report)
        return report

    async def _next_beat(self) -> None:
        """Wait for the interval to pass, or for a change that routing depends on."""
        try:
            async with asyncio.timeout(self._interval_s):
                while True:
                    await self._changed.wait()
                    await asyncio.sleep(CHANGE_DELAY_S)
                    self._changed.clear()
                    if _what_routing_sees(self._build_report(self._registered_as)) != self._told:
                        return
        except TimeoutError:
            return

    async def _send(
        self,
        method: str,
        path: str,
        tree: Mapping[str, Any] | None,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Mapping[str, Any] | None:
        """Return the answer's object, None when the gateway asks for a registration."""
        key = self.link.api_key
        authorization = (("Authorization", f"Bearer {key}"),) if key else ()
        reply = await fetch(
            self.gateway,
            method,
            path,
            body=None if tree is None else json.dumps(tree).encode(),
            fields=(("Content-Type", "application/json"), *authorization),
            timeout_s=timeout_s,
        )
        if reply.status in _MUST_REGISTER and not path.endswith("/register"):
            return None
        if reply.status >= 500:
            raise UpstreamBroke(_refusal_text(reply), upstream=self.link.url)
        if not 200 <= reply.status < 300:
            raise _Refused(_refusal_text(reply))
        return _object(reply.body)

    def _take_interval(self, answer: Mapping[str, Any] | None) -> None:
        asked_s = (answer or {}).get("heartbeat_interval_s")
        if isinstance(asked_s, (int, float)) and not isinstance(asked_s, bool):
            self._interval_s = min(max(float(asked_s), 0.1), 60.0)

    def _set_state(self, state: LinkState, problem: str) -> None:
        if state is self.state and problem == self.problem:
            return
        if state is LinkState.REFUSED:
            logger.error("gateway %s refuses this node: %s", self.link.url, problem)
        elif state is LinkState.AWAY and self.state is not LinkState.AWAY:
            logger.warning("gateway %s is away: %s", self.link.url, problem)
        self.state = state
        self.problem = problem
        self._on_link_change()


def _what_routing_sees(report: NodeReport) -> tuple[ModelReport, ...]:
    """Return what is worth an early heartbeat; free slots and progress can wait for the next."""
    return tuple(replace(model.without_free_slots(), progress=None) for model in report.models)


def _refusal_text(reply: FetchReply) -> str:
    error = _object(reply.body).get("error")
    said = error.get("message") if isinstance(error, dict) else None
    text = str(said or reply.body[:200].decode("utf-8", "replace")).strip()
    return f"{reply.status} {text}".strip()


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}
