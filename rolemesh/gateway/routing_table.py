"""Settings + nodes + health -> the immutable table of what answers each alias; pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final

from rolemesh.address import UpstreamAddress
from rolemesh.config.settings import (
    DiscoveredAlias,
    GatewaySettings,
    Priority,
    ProxyAlias,
    Timeouts,
)
from rolemesh.gateway.upstream_kinds import Health
from rolemesh.names import Alias, InstanceName, ModelId, NodeId, Role
from rolemesh.relay.edit import as_members
from rolemesh.relay.headers import encode_fields
from rolemesh.relay.members import Members
from rolemesh.wire import InstanceReport, ModelReport, ModelState

CandidateKey = tuple[str, str | None, str | None]
"""What tells candidates apart: the upstream's name, the model and the instance."""

MAX_REASONS: Final = 8
"""How many candidates' reasons one message holds."""


class Warmth(IntEnum):
    """How far a candidate is from its first token; lower is better."""

    READY = 0
    LOADING = 1
    COLD = 2
    CROWDED = 3  # not loaded, and whoever is loaded there has to finish first


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


SHORTEST_SPILL_S: Final = 5.0
LONGEST_SPILL_S: Final = 30.0
"""Bounds of how long a request waits for the instances that have its model, before one more is loaded:
as long as a load takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One upstream and the model it would serve.

    `model` is sent upstream, None leaves the client's word; `instance` is the one of a node that is
    meant, None leaves it to the node. `slots` bounds how much is sent there at once, None does not.
    `unusable` says why it cannot answer now, "" when it can. `preference` is its place in its
    node's own order, `progress` 0..1 that of a load under way, `load_estimate_s` how long one
    takes. `reserved` says how many slots certain aliases always find free.

    Slots in use are counted by `counted_as`: what is sent to a static upstream all together.
    `request_lines` are the header lines that every request sent there has, `reply_lines` those that
    tell who answered.
    """

    upstream: Upstream
    model: str | None
    instance: InstanceName | None = None
    warmth: Warmth = Warmth.READY
    slots: int | None = None
    unusable: str = ""
    preference: int = 0
    progress: float | None = None
    load_estimate_s: float | None = None
    reserved: tuple[tuple[Alias, int], ...] = ()
    key: CandidateKey = field(init=False, repr=False, compare=False)
    counted_as: CandidateKey = field(init=False, repr=False, compare=False)
    request_lines: bytes = field(init=False, repr=False, compare=False)
    reply_lines: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        upstream, instance = self.upstream, self.instance
        key = (upstream.name, self.model, instance)
        counted_as = (upstream.name, None, None) if upstream.node_id is None else key
        request_lines = upstream.request_lines
        if instance is not None:
            request_lines += encode_fields((("X-RoleMesh-Instance", _one_line(instance)),))
        fields = [("X-RoleMesh-Node", upstream.name)]
        if self.model is not None:
            fields.append(("X-RoleMesh-Model", _one_line(self.model)))
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "counted_as", counted_as)
        object.__setattr__(self, "request_lines", request_lines)
        object.__setattr__(self, "reply_lines", encode_fields(tuple(fields)))


def _one_line(name: str) -> str:
    return " ".join(name.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What answers an alias; `absent` says why there is no candidate at all.

    `tiers` are the usable candidates: those nearest to a first token first, among them those that
    their nodes prefer. Within a tier only the load tells them apart. `ready` are those of them that have
    their model loaded; `only` is the candidate of a target that has but one. See AliasSettings for
    the rest.
    """

    alias: Alias
    role: Role | None
    candidates: tuple[Candidate, ...]
    defaults: Mapping[str, Any]
    timeouts: Timeouts
    absent: str = ""
    fallback: tuple[Alias, ...] = ()
    priority: Priority = Priority.DEFAULT
    echo_model: bool = False
    tiers: tuple[tuple[Candidate, ...], ...] = field(init=False, repr=False, compare=False)
    ready: Mapping[CandidateKey, Candidate] = field(init=False, repr=False, compare=False)
    may_spill: bool = field(init=False, repr=False, compare=False)
    spill_after_s: float = field(init=False, repr=False, compare=False)
    only: Candidate | None = field(init=False, repr=False, compare=False)
    default_members: Members = field(init=False, repr=False, compare=False)
    load_wait_line: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tiers: dict[tuple[int, int], list[Candidate]] = {}
        for candidate in self.candidates:
            if not candidate.unusable:
                tier = (candidate.warmth, candidate.preference)
                tiers.setdefault(tier, []).append(candidate)
        object.__setattr__(self, "tiers", tuple(tuple(tiers[tier]) for tier in sorted(tiers)))
        ready = {
            candidate.key: candidate
            for tier in self.tiers
            for candidate in tier
            if candidate.warmth is Warmth.READY
        }
        object.__setattr__(self, "ready", ready)
        warmths = {tier[0].warmth for tier in self.tiers}
        object.__setattr__(self, "may_spill", bool(ready) and max(warmths) >= Warmth.COLD)
        loads_s = [each.load_estimate_s or 0.0 for each in ready.values()]
        spill_after_s = min(max(loads_s, default=0.0), LONGEST_SPILL_S)
        object.__setattr__(self, "spill_after_s", max(spill_after_s, SHORTEST_SPILL_S))
        is_only = len(self.candidates) == 1 and self.tiers
        object.__setattr__(self, "only", self.candidates[0] if is_only else None)
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


UNPROBED = Health(down="its upstream was not looked at yet")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """Every alias there is, and what answers it."""

    targets: Mapping[Alias, Target]
    default_model: Alias | None

    def candidate_keys(self) -> frozenset[CandidateKey]:
        """Return the keys of all candidates that may hold something: those that are ready."""
        return frozenset(
            candidate.key
            for target in self.targets.values()
            for candidate in target.candidates
            if candidate.warmth is Warmth.READY
        )


def build_routing_table(
    settings: GatewaySettings,
    nodes: tuple[NodeView, ...],
    health: Mapping[Alias, Health],
    locate: Callable[[ProxyAlias], UpstreamAddress],
) -> RoutingTable:
    """Return the table; `health` is that of the proxy aliases, `locate` says where they lead."""
    aliases: dict[Alias, ProxyAlias | DiscoveredAlias] = dict(settings.models)
    if settings.aliases_from_roles:
        for role in _announced_roles(nodes):
            alias = Alias(role)
            aliases.setdefault(
                alias, DiscoveredAlias(alias=alias, role=role, timeouts=settings.timeouts)
            )
    upstreams = {node.node_id: _node_upstream(node) for node in nodes}
    candidates = {
        alias: (_proxy_candidate(entry, health.get(alias, UNPROBED), locate(entry)),)
        if isinstance(entry, ProxyAlias)
        else _node_candidates(entry.role, nodes, upstreams)
        for alias, entry in aliases.items()
    }
    reserved = _reservations(aliases, candidates)
    targets = {
        alias: _target(
            entry,
            tuple(
                replace(candidate, reserved=reserved[candidate.counted_as])
                if candidate.counted_as in reserved
                else candidate
                for candidate in candidates[alias]
            ),
        )
        for alias, entry in aliases.items()
    }
    return RoutingTable(targets=MappingProxyType(targets), default_model=settings.default_model)


def _target(entry: ProxyAlias | DiscoveredAlias, candidates: tuple[Candidate, ...]) -> Target:
    role = entry.role if isinstance(entry, DiscoveredAlias) else None
    return Target(
        alias=entry.alias,
        role=role,
        candidates=candidates,
        defaults=entry.defaults,
        timeouts=entry.timeouts,
        absent=f"no node announces the role {role}",
        fallback=entry.fallback,
        priority=entry.priority,
        echo_model=entry.echo_model,
    )


def _reservations(
    aliases: Mapping[Alias, ProxyAlias | DiscoveredAlias],
    candidates: Mapping[Alias, tuple[Candidate, ...]],
) -> Mapping[CandidateKey, tuple[tuple[Alias, int], ...]]:
    """Return who has slots reserved where, by what slots are counted as."""
    reserved: dict[CandidateKey, tuple[tuple[Alias, int], ...]] = {}
    for alias, entry in aliases.items():
        if entry.reserved_slots:
            for key in {candidate.counted_as for candidate in candidates[alias]}:
                reserved[key] = (*reserved.get(key, ()), (alias, entry.reserved_slots))
    return reserved


def _announced_roles(nodes: tuple[NodeView, ...]) -> list[Role]:
    return sorted({role for node in nodes for model in node.models for role in model.roles})


def _proxy_candidate(entry: ProxyAlias, known: Health, address: UpstreamAddress) -> Candidate:
    return Candidate(
        upstream=Upstream(name=entry.proxy_url, address=address, api_key=entry.api_key),
        model=entry.model,
        warmth=_WARMTH[known.state],
        slots=entry.max_in_flight,
        unusable=known.down,
    )


def _node_upstream(node: NodeView) -> Upstream:
    return Upstream(
        name=node.node_id, address=node.address, node_id=node.node_id, api_key=node.api_key
    )


def _node_candidates(
    role: Role, nodes: tuple[NodeView, ...], upstreams: Mapping[NodeId, Upstream]
) -> tuple[Candidate, ...]:
    """Return one candidate for each ready instance, and one for a model that has none."""
    return tuple(
        _node_candidate(node, upstreams[node.node_id], model, preference, instance)
        for node in nodes
        for preference, model in enumerate(node.models)
        if role in model.roles
        for instance in model.instances or (None,)
    )


_WARMTH = {
    ModelState.READY: Warmth.READY,
    ModelState.UNKNOWN: Warmth.READY,
    ModelState.LOADING: Warmth.LOADING,
    ModelState.COLD: Warmth.COLD,
    ModelState.FAILED: Warmth.COLD,
}


def _node_candidate(
    node: NodeView,
    upstream: Upstream,
    model: ModelReport,
    preference: int,
    instance: InstanceReport | None,
) -> Candidate:
    unusable = node.unusable
    if not unusable and not model.usable:
        unusable = model.reason or model.state.value
    return Candidate(
        upstream=upstream,
        model=ModelId(model.model_id),
        instance=None if instance is None else instance.name,
        warmth=_WARMTH[model.state] if model.has_room else Warmth.CROWDED,
        slots=model.slots if instance is None else instance.slots,
        unusable=unusable,
        preference=preference,
        progress=model.progress,
        load_estimate_s=model.load_estimate_s,
    )
