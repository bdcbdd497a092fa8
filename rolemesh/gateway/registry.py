"""What the nodes said last: the single writer of everything the gateway knows about nodes.

A node is out of routing when it is late (`stale_after_s` without a word), restored from the state
file and not heard or probed since, or lost (a request failed and a probe confirmed it), or drained
by an operator, which lasts until it is taken back: over restarts of the gateway and of the node.
Every change marks the routing table for rebuilding through `on_change`.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from rolemesh import jsonread
from rolemesh.address import UpstreamAddress
from rolemesh.gateway.routing_table import NodeView
from rolemesh.names import NodeId
from rolemesh.runtime.log import fields
from rolemesh.runtime.operator_events import OperatorEvent
from rolemesh.wire import NodeReport, models_from_json

logger = logging.getLogger(__name__)

SAVED_VERSION: Final = 1

FORGET_AFTER_S: Final = 24 * 3600.0
"""How long a node that is not heard of stays known, with its reason, for people to see."""


class NodeState(Enum):
    """Whether a node is heard of."""

    LIVE = "live"
    RESTORED = "restored"
    LATE = "late"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One registered node; `heard_at` is monotonic.

    `must_register`: what is known comes from the state file and may be out of date, so its next
    heartbeat is answered with the request to register. `fault`: why a lost one did not answer.
    """

    report: NodeReport
    address: UpstreamAddress
    state: NodeState
    heard_at: float
    must_register: bool = False
    is_drained: bool = False
    fault: str = ""

    def view(self, now: float) -> NodeView:
        """Return what the routing table sees of it."""
        return NodeView(
            node_id=self.report.node_id,
            address=self.address,
            api_key=self.report.api_key,
            models=self.report.models,
            unusable=self.unusable(now),
        )

    def unusable(self, now: float) -> str:
        """Return why the node is out of routing, "" when it is in."""
        silent = f"{now - self.heard_at:.0f} s"
        return {
            NodeState.LIVE: "drained by an operator" if self.is_drained else "",
            NodeState.RESTORED: "known from before this gateway started, not heard since",
            NodeState.LATE: f"stale: not heard for {silent}",
            NodeState.LOST: f"did not answer: {self.fault}" if self.fault else "did not answer",
        }[self.state]


class UnknownNode(LookupError):
    """The node has to register first."""


class Registry:
    """All nodes."""

    def __init__(
        self,
        *,
        stale_after_s: float,
        on_change: Callable[[], None],
        on_silent: Callable[[UpstreamAddress], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stale_after_s = stale_after_s
        self._on_change = on_change
        self._on_silent = on_silent
        self._clock = clock
        self._nodes: dict[NodeId, Node] = {}
        self._drained: set[NodeId] = set()

    @property
    def nodes(self) -> Mapping[NodeId, Node]:
        """Return every node by its id."""
        return self._nodes

    def views(self) -> tuple[NodeView, ...]:
        """Return the nodes for the routing table, in a stable order."""
        now = self._clock()
        return tuple(self._nodes[node_id].view(now) for node_id in sorted(self._nodes))

    def register(self, report: NodeReport, address: UpstreamAddress) -> None:
        """Take a full report; `address` is its base_url, checked and resolved."""
        self._put(
            Node(report=report, address=address, state=NodeState.LIVE, heard_at=self._clock())
        )

    def heartbeat(self, node_id: NodeId, tree: Mapping[str, Any]) -> None:
        """Take a heartbeat; raises UnknownNode when the node must register first.

        That is so for a node never seen, for one with another boot_id, and for one restored from
        the state file, whose registration may be out of date.
        """
        node = self._nodes.get(node_id)
        boot_id = jsonread.get_str(tree, "boot_id", "")
        if node is None or node.must_register or node.report.boot_id != boot_id:
            raise UnknownNode(node_id)
        models = models_from_json(tree) if "models" in tree else node.report.models
        inventory = {key: tree[key] for key in ("instances", "gpus", "host") if key in tree}
        report = replace(
            node.report, models=models, inventory={**node.report.inventory, **inventory}
        )
        self._put(replace(node, report=report, state=NodeState.LIVE, heard_at=self._clock()))

    def readdress(self, secured: Callable[[UpstreamAddress], UpstreamAddress]) -> None:
        """Reach every node by what verifies its address now."""
        for node in tuple(self._nodes.values()):
            self._put(replace(node, address=secured(node.address)))

    def remove(self, node_id: NodeId) -> bool:
        """Forget a node; tells whether it was known."""
        known = self._nodes.pop(node_id, None) is not None
        if known:
            self._on_change()
        return known

    def drain(self, node_id: NodeId) -> None:
        """Send a node nothing new until `undrain`; raises UnknownNode."""
        if node_id not in self._nodes:
            raise UnknownNode(node_id)
        self._drained.add(node_id)
        self._put(self._nodes[node_id])

    def undrain(self, node_id: NodeId) -> None:
        """Take `drain` back, also of a node that has left since; raises UnknownNode."""
        if node_id not in self._nodes and node_id not in self._drained:
            raise UnknownNode(node_id)
        self._drained.discard(node_id)
        if node_id in self._nodes:
            self._put(self._nodes[node_id])
        else:
            self._on_change()

    def answered(self, node_id: NodeId) -> None:
        """Note that a node answered a probe or a request."""
        node = self._nodes.get(node_id)
        if node is not None and node.state is not NodeState.LIVE:
            self._put(replace(node, state=NodeState.LIVE, heard_at=self._clock()))

    def did_not_answer(self, node_id: NodeId, fault: str = "") -> None:
        """Note that a node did not answer a probe, and why."""
        node = self._nodes.get(node_id)
        if node is not None and node.state is NodeState.LIVE:
            self._put(replace(node, state=NodeState.LOST, fault=fault))
            self._on_silent(node.address)

    def expire(self) -> float:
        """Take stale nodes out of routing; returns the seconds until the next one may be.

        One not heard for FORGET_AFTER_S is forgotten.
        """
        now = self._clock()
        due = [self.stale_after_s]
        for node_id, node in tuple(self._nodes.items()):
            left = node.heard_at + self.stale_after_s - now
            if node.state is NodeState.LIVE and left <= 0:
                self._put(replace(node, state=NodeState.LATE))
                self._on_silent(node.address)
            elif node.state is NodeState.LIVE:
                due.append(left)
            elif now - node.heard_at > max(FORGET_AFTER_S, self.stale_after_s):
                self.remove(node_id)
        return min(due)

    def _put(self, node: Node) -> None:
        node_id = node.report.node_id
        before = self._nodes.get(node_id)
        is_drained = node_id in self._drained
        if node.is_drained != is_drained:
            node = replace(node, is_drained=is_drained)
        self._nodes[node_id] = node
        if before is not None and before.state is not node.state:
            _log_change(before, node, self._clock())
        if before is None or _routed_on(before) != _routed_on(node):
            self._on_change()

    # -- the state file --------------------------------------------------------------------

    def saved(self) -> dict[str, Any]:
        """Return what is kept over a restart."""
        reports = [node.report.to_json() for node in self._nodes.values()]
        return {"version": SAVED_VERSION, "nodes": reports, "drained": sorted(self._drained)}

    def restore(self, tree: Any) -> None:
        """Take back what `saved` returned; raises ValueError when it is something else.

        Restored nodes are out of routing until they are heard of.
        """
        saved = jsonread.as_object(tree)
        if saved.get("version") != SAVED_VERSION:
            msg = f"version: expected {SAVED_VERSION}, found {saved.get('version')!r}"
            raise ValueError(msg)
        drained = jsonread.get_strings(saved, "drained") if "drained" in saved else ()
        nodes = [
            self._restored(element, drained) for element in jsonread.get_objects(saved, "nodes")
        ]
        self._drained.update(map(NodeId, drained))
        self._nodes.update({node.report.node_id: node for node in nodes})
        self._on_change()

    def _restored(self, tree: Mapping[str, Any], drained: Collection[str]) -> Node:
        report = NodeReport.from_json(tree)
        return Node(
            report=report,
            address=UpstreamAddress.parse_url(report.base_url),
            state=NodeState.RESTORED,
            heard_at=self._clock(),
            must_register=True,
            is_drained=report.node_id in drained,
        )


def _log_change(before: Node, node: Node, now: float) -> None:
    name = node.report.node_id
    if node.state in (NodeState.LATE, NodeState.LOST):
        extra = fields(event=OperatorEvent.NODE_LOST, node=name)
        logger.warning("node %s is out of routing: %s", name, node.unusable(now), extra=extra)
    elif before.state in (NodeState.LATE, NodeState.LOST):
        extra = fields(event=OperatorEvent.NODE_BACK, node=name)
        logger.info("node %s is back", name, extra=extra)


def _routed_on(node: Node) -> tuple[Any, ...]:
    """Return what of a node the routing table depends on: free slots come and go without it."""
    models = tuple(model.without_free_slots() for model in node.report.models)
    return (node.state, node.is_drained, node.address, node.report.api_key, models)
