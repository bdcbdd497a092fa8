"""Whether gateways answer for the roles of a new model, asked with the node's own key."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rolemesh.config.settings import GatewayLink, NodeSettings
from rolemesh.ctl.join_gateway import JoinGateway
from rolemesh.ctl.outcomes import CtlError

WAIT_S: Final = 15.0
"""How long a gateway has to hear of the model: longer than between two heartbeats."""

_PAUSE_S: Final = 0.25


def unanswered(
    settings: NodeSettings, node_id: str, model_id: str, roles: tuple[str, ...]
) -> list[str]:
    """Return what keeps each gateway from answering by the roles, a line each."""
    end = time.monotonic() + WAIT_S
    return [
        f"{link.url}: {line}"
        for link in settings.gateways
        for line in _unanswered_by(link, node_id, model_id, roles, end)
    ]


def _unanswered_by(
    link: GatewayLink, node_id: str, model_id: str, roles: tuple[str, ...], end: float
) -> Iterator[str]:
    try:
        known = _heard(JoinGateway.of(link), node_id, model_id, end)
    except CtlError as error:
        yield f"it could not be asked ({error})"
        return
    if known is None:
        yield f"it has not heard of {model_id} yet; `rolemeshctl nodes` there says why"
        return
    silent = [role for role in roles if not known.get("aliases", {}).get(role)]
    if silent:
        yield (
            f"no alias there is answered by the role {', '.join(silent)}: add "
            "`aliases: {from_roles: true}` to its configuration, or an alias to its `models`"
        )


def _heard(
    gateway: JoinGateway, node_id: str, model_id: str, end: float
) -> Mapping[str, Any] | None:
    """Return what a gateway knows of the node once that has the model as usable; None: never."""
    while True:
        known = gateway.node(node_id) or {}
        models = {each.get("model_id"): each for each in known.get("models", [])}
        if models.get(model_id, {}).get("usable"):
            return known
        if time.monotonic() > end:
            return None
        time.sleep(_PAUSE_S)
