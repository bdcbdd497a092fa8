"""An agent of this host, by its place: asked over its control socket."""

from typing import Final

from rolemesh.ctl.agent_place import AgentPlace
from rolemesh.ctl.agents import AGENT_PREFIX, Agent
from rolemesh.ctl.gateway_address import GatewayAddress
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.outcomes import NotReachable

TIMEOUT_S: Final = 10.0


def agent_at(place: AgentPlace) -> Agent | None:
    """Return the agent, None where it does not answer, or not to the caller."""
    address = GatewayAddress(sockets=place.sockets)
    api = GatewayApi(address, timeout_s=TIMEOUT_S, prefix=AGENT_PREFIX)
    try:
        return Agent(node=api.get("node", has="models"), api=api, path=("node",))
    except NotReachable:
        return None
