"""Settings + nodes + health -> the immutable table of what answers each alias; pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final

from rolemesh.address import UpstreamAddress
from rolemesh.config.settings import DiscoveredAlias, GatewaySettings, ProxyAlias, Timeouts
from rolemesh.names import Alias, ModelId, NodeId, Role
from rolemesh.relay.edit import as_members
from rolemesh.relay.headers import encode_fields
from rolemesh.relay.members import Members
from rolemesh.wire import ModelReport, ModelState

CandidateKey = tuple[str, str | None]
"""What requests under way are counted by: the upstream's name and the model."""

MAX_REASONS: Final = 8
"""How many candidates' reasons one message holds."""


class Warmth(IntEnum):
    """How far a candidate is from its first token; lower is better."""

    READY = 0
    LOADING = 1
    COLD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """Where requests can be sent: a node, or a static upstream (`node_id` is None then).

    `request_lines` are the header lines that every request sent there has.
    """

    name: str
    address: UpstreamAddress
    node_id: NodeId | None = None
    api_key: str | None = field(default=None, repr=False)
    request_lines: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        fields = [("Host", self.address.authority), ("Content-Type", "application/json")]
        if self.api_key is not None:
            fields.append(("Authorization", f"Bearer {self.api_key}"))
        object.__setattr__(self, "request_lines", encode_fields(tuple(fields)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One upstream and the model it would serve.

    `model` is sent upstream, None leaves the client's word. `slots` bounds how much is sent there
    at once, None does not. `unusable` says why it cannot answer now, "" when it can. `preference`
    is its place in its node's own order. `reply_lines` are the header lines that tell who answered.
    """

    upstream: Upstream
    model: str | None
    warmth: Warmth = Warmth.READY
    slots: int | None = None
    unusable: str = ""
    preference: int = 0
    key: CandidateKey = field(init=False, repr=False, compare=False)
    reply_lines: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.upstream.name, self.model))
        fields = [("X-RoleMesh-Node", self.upstream.name)]
        if self.model is not None:
            fields.append(("X-RoleMesh-Model", " ".join(self.model.split())))
        object.__setattr__(self, "reply_lines", encode_fields(tuple(fields)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What answers an alias; `absent` says why there is no candidate at all.

    `tiers` are the usable candidates: those nearest to a first token first, among them those that
    their nodes prefer. Within a tier only the load tells them apart.
    """

    alias: Alias
    role: Role | None
    candidates: tuple[Candidate, ...]
    defaults: Mapping[str, Any]
    timeouts: Timeouts
    absent: str = ""
    tiers: tuple[tuple[Candidate, ...], ...] = field(init=False, repr=False, compare=False)
    default_members: Members = field(init=False, repr=False, compare=False)
    load_wait_line: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tiers: dict[tuple[int, int], list[Candidate]] = {}
        for candidate in self.candidates:
            if not candidate.unusable:
                tier = (candidate.warmth, candidate.preference)
                tiers.setdefault(tier, []).append(candidate)
        object.__setattr__(self, "tiers", tuple(tuple(tiers[tier]) for tier in sorted(tiers)))
        object.__setattr__(self, "default_members", as_members(self.defaults))
        wait_s = f"{self.timeouts.load_wait_s:g}"
        object.__setattr__(self, "load_wait_line", f"X-RoleMesh-Load-Wait: {wait_s}\r\n".encode())

    @property
    def usable(self) -> bool:
        """Tell whether some candidate can answer, if need be after a load."""
        return bool(self.tiers)

    @property
    def reason(self) -> str:
        """Return why the target is not usable, one reason per candidate; "" when it is."""
        if self.usable:
            return ""
        if not self.candidates:
            return self.absent
        reasons = list(map(_why_unusable, self.candidates[:MAX_REASONS]))
        if len(self.candidates) > MAX_REASONS:
            reasons.append(f"and {len(self.candidates) - MAX_REASONS} more")
        return "; ".join(reasons)


def _why_unusable(candidate: Candidate) -> str:
    if candidate.upstream.node_id is None:
        return candidate.unusable  # it names the address itself
    return f"{candidate.upstream.name}: {candidate.unusable}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node as the table sees it; `unusable` says why it is out of routing, "" when it is in."""

    node_id: NodeId
    address: UpstreamAddress
    api_key: str | None
    models: tuple[ModelReport, ...]
    unusable: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What is known of a static upstream; `down` says why it cannot be used, "" when it can."""

    down: str = ""
    loading: bool = False


UNPROBED = Health(down="its upstream was not looked at yet")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """Every alias there is, and what answers it."""

    targets: Mapping[Alias, Target]
    default_model: Alias | None


def build_routing_table(
    settings: GatewaySettings,
    nodes: tuple[NodeView, ...],
    health: Mapping[str, Health],
) -> RoutingTable:
    """Return the table; `health` is by proxy_url."""
    aliases: dict[Alias, ProxyAlias | DiscoveredAlias] = dict(settings.models)
    if settings.aliases_from_roles:
        for role in _announced_roles(nodes):
            alias = Alias(role)
            aliases.setdefault(
                alias, DiscoveredAlias(alias=alias, role=role, timeouts=settings.timeouts)
            )
    upstreams = {node.node_id: _node_upstream(node) for node in nodes}
    targets = {
        alias: _proxy_target(entry, health)
        if isinstance(entry, ProxyAlias)
        else _discovered_target(entry, nodes, upstreams)
        for alias, entry in aliases.items()
    }
    return RoutingTable(targets=MappingProxyType(targets), default_model=settings.default_model)


def _announced_roles(nodes: tuple[NodeView, ...]) -> list[Role]:
    return sorted({role for node in nodes for model in node.models for role in model.roles})


def _proxy_target(entry: ProxyAlias, health: Mapping[str, Health]) -> Target:
    known = health.get(entry.proxy_url, UNPROBED)
    candidate = Candidate(
        upstream=Upstream(name=entry.proxy_url, address=UpstreamAddress.parse_url(entry.proxy_url)),
        model=entry.model,
        warmth=Warmth.LOADING if known.loading else Warmth.READY,
        slots=entry.max_in_flight,
        unusable=known.down,
    )
    return Target(
        alias=entry.alias,
        role=None,
        candidates=(candidate,),
        defaults=entry.defaults,
        timeouts=entry.timeouts,
    )


def _node_upstream(node: NodeView) -> Upstream:
    return Upstream(
        name=node.node_id, address=node.address, node_id=node.node_id, api_key=node.api_key
    )


def _discovered_target(
    entry: DiscoveredAlias, nodes: tuple[NodeView, ...], upstreams: Mapping[NodeId, Upstream]
) -> Target:
    candidates = tuple(
        _node_candidate(node, upstreams[node.node_id], model, preference)
        for node in nodes
        for preference, model in enumerate(node.models)
        if entry.role in model.roles
    )
    return Target(
        alias=entry.alias,
        role=entry.role,
        candidates=candidates,
        defaults=entry.defaults,
        timeouts=entry.timeouts,
        absent=f"no node announces the role {entry.role}",
    )


_WARMTH = {
    ModelState.READY: Warmth.READY,
    ModelState.UNKNOWN: Warmth.READY,
    ModelState.LOADING: Warmth.LOADING,
    ModelState.COLD: Warmth.COLD,
    ModelState.FAILED: Warmth.COLD,
}


def _node_candidate(
    node: NodeView, upstream: Upstream, model: ModelReport, preference: int
) -> Candidate:
    unusable = node.unusable
    if not unusable and not model.usable:
        unusable = model.reason or model.state.value
    return Candidate(
        upstream=upstream,
        model=ModelId(model.model_id),
        warmth=_WARMTH[model.state],
        slots=model.slots,
        unusable=unusable,
        preference=preference,
    )
