"""Short ways to make the values that the gateway decides about."""

from typing import Any

from rolemesh.address import UpstreamAddress
from rolemesh.config.settings import Timeouts
from rolemesh.gateway.routing_table import Candidate, NodeView, Target, Upstream, Warmth
from rolemesh.names import Alias, ModelId, NodeId, Role
from rolemesh.wire import ModelReport, NodeReport

ADDRESS = UpstreamAddress.parse_url("http://10.0.0.7:8100")


def candidate(
    name: str = "box",
    model: str | None = "m",
    *,
    slots: int | None = 1,
    warmth: Warmth = Warmth.READY,
    unusable: str = "",
    preference: int = 0,
    **fields: Any,
) -> Candidate:
    return Candidate(
        upstream=Upstream(name=name, address=ADDRESS, node_id=NodeId(name)),
        model=model,
        slots=slots,
        warmth=warmth,
        unusable=unusable,
        preference=preference,
        **fields,
    )


def target(*candidates: Candidate, absent: str = "", alias: str = "coder") -> Target:
    return Target(
        alias=Alias(alias),
        role=Role("coder"),
        candidates=candidates,
        defaults={},
        timeouts=Timeouts(),
        absent=absent,
    )


def model(model_id: str = "m", *roles: str, **fields: Any) -> ModelReport:
    return ModelReport(
        model_id=ModelId(model_id), roles=tuple(map(Role, roles or ("coder",))), **fields
    )


def node_view(node_id: str = "box", *models: ModelReport, unusable: str = "") -> NodeView:
    return NodeView(
        node_id=NodeId(node_id),
        address=ADDRESS,
        api_key=None,
        models=models or (model(),),
        unusable=unusable,
    )


def report(node_id: str = "box", *models: ModelReport, **fields: Any) -> NodeReport:
    return NodeReport(
        node_id=NodeId(node_id),
        base_url=fields.pop("base_url", "http://10.0.0.7:8100"),
        models=models or (model(),),
        inventory=fields.pop("inventory", {}),
        **fields,
    )
