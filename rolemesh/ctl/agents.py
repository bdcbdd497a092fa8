"""Which node's agent a verb speaks to: one of this host by its control socket, or any by a gateway.

In this order:

1. `--url`: the gateway there, and nothing else
2. the agents of this host, by the control sockets that the caller may open:
   $XDG_RUNTIME_DIR/rolemesh/node*/control.sock, then /run/rolemesh/node*/control.sock
3. the gateway where `gateway_address` finds it

With `--node` it is the one of that name. Otherwise the one that has what the verb is about; of
several none is guessed.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rolemesh.ctl.agent_place import UNIT as AGENT_UNIT
from rolemesh.ctl.gateway_address import GatewayAddress, find_gateway
from rolemesh.ctl.gateway_api import TIMEOUT_S, GatewayApi
from rolemesh.ctl.outcomes import BadUsage, NotReachable, NotThere

SYSTEM_DIRECTORY: Final = Path("/run/rolemesh")

_OUT_OF_REACH: Final = ("late", "lost", "restored")
AGENT_PREFIX: Final = "/v1/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A node's agent, and the way to it.

    `node` is what is known of the node: `models`, `instances`, `gpus` and `host`, as in a report.
    """

    node: Mapping[str, Any]
    api: GatewayApi
    path: tuple[str, ...]

    @property
    def node_id(self) -> str:
        """The node's name."""
        return str(self.node["node_id"])

    @property
    def can_be_heard(self) -> bool:
        """Whether it is likely to answer."""
        return self.node.get("state") not in _OUT_OF_REACH

    def get(self, *path: str, has: str, **query: str | None) -> dict[str, Any]:
        """Return what the agent says at a path: an object with a list `has`."""
        return self.api.get(*self.path, *path, has=has, **query)

    def post(self, *path: str, body: Any = None, **query: str | None) -> dict[str, Any]:
        """Have the agent do something."""
        return self.api.post(*self.path, *path, body=body, **query)

    def lines(self, *path: str, body: Any, **query: str | None) -> Iterator[dict[str, Any]]:
        """Have the agent do something that takes a while; yields what it says on the way."""
        return self.api.lines(*self.path, *path, body=body, **query)

    def has_model(self, model_id: str) -> bool:
        """Tell whether a model is configured there."""
        return any(each.get("model_id") == model_id for each in self.node.get("models", []))

    def instance(self, name: str) -> Mapping[str, Any] | None:
        """Return one of its instances."""
        named = (each for each in self.node.get("instances", []) if each.get("instance") == name)
        return next(named, None)


def add_node_option(parser: argparse.ArgumentParser) -> None:
    """Add --node."""
    parser.add_argument(
        "--node",
        metavar="NODE",
        help="which node, as `nodes` shows it (default: this host's, else the one that it is about)",
    )


def find_agents(args: argparse.Namespace, *, timeout_s: float = TIMEOUT_S) -> list[Agent]:
    """Return the agents that may be meant, those of this host or those that the gateway knows.

    With `--node` that one alone. Raises NotReachable, NotThere.
    """
    wanted: str | None = args.node
    own = [] if args.url else local_agents(timeout_s=timeout_s)
    agents = [agent for agent in own if wanted in (None, agent.node_id)]
    if not agents:
        try:
            agents = agents_by_gateway(args, timeout_s)
        except NotReachable as error:
            if args.url or own:
                raise
            msg = f"no agent answers on this host (`systemctl start {AGENT_UNIT}`); and {error}"
            raise NotReachable(msg) from error
        if wanted is not None:
            agents = [agent for agent in agents if agent.node_id == wanted]
            if not agents:
                msg = f"no node {wanted} is known; `rolemeshctl nodes` lists them"
                raise NotThere(msg)
    return agents


def choose_agent(agents: list[Agent], has: Callable[[Agent], object], *, what: str) -> Agent:
    """Return the one agent that has something; `what` names it: `model coder`.

    Raises NotThere when none has it, BadUsage when several have.
    """
    having = [agent for agent in agents if has(agent)]
    having = [agent for agent in having if agent.can_be_heard] or having
    if len(having) == 1:
        return having[0]
    if having:
        msg = f"several nodes have the {what}: {_names(having)}; say which with --node"
        raise BadUsage(msg)
    msg = f"there is no {what} on {_names(agents)}" if agents else "no node has registered"
    raise NotThere(f"{msg}; `rolemeshctl models` and `rolemeshctl nodes` list what there is")


def agent_with_model(args: argparse.Namespace, model_id: str) -> Agent:
    """Return the one agent that has a model; raises as find_agents and choose_agent."""
    agents = find_agents(args)
    return choose_agent(agents, lambda each: each.has_model(model_id), what=f"model {model_id}")


def agent_with_instance(args: argparse.Namespace, name: str) -> Agent:
    """Return the one agent that has an instance; raises as find_agents and choose_agent."""
    agents = find_agents(args)
    return choose_agent(agents, lambda each: each.instance(name), what=f"instance {name}")


def the_agent(agents: list[Agent]) -> Agent:
    """Return the only agent; raises BadUsage when there are several, NotThere without any."""
    if len(agents) > 1:
        msg = f"which of the nodes {_names(agents)}? say it with --node"
        raise BadUsage(msg)
    if not agents:
        msg = "no node has registered"
        raise NotThere(msg)
    return agents[0]


def _names(agents: list[Agent]) -> str:
    return ", ".join(sorted(agent.node_id for agent in agents))


def local_agents(
    environ: Mapping[str, str] = os.environ, *, timeout_s: float = TIMEOUT_S
) -> list[Agent]:
    """Return the agents of this host that answer; what else is there is passed over."""
    agents = []
    for socket in agent_sockets(environ):
        api = GatewayApi(
            GatewayAddress(sockets=(socket,)), timeout_s=timeout_s, prefix=AGENT_PREFIX
        )
        try:
            agents.append(Agent(node=api.get("node", has="models"), api=api, path=("node",)))
        except NotReachable:
            continue
    return agents


def agent_sockets(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Return the control sockets of this host's agents that there are: the user's, the system's."""
    user = environ.get("XDG_RUNTIME_DIR", "")
    directories = [*([Path(user, "rolemesh")] if user else []), SYSTEM_DIRECTORY]
    return [
        socket
        for directory in directories
        for pattern in ("node", "node-*")
        for socket in sorted(directory.glob(f"{pattern}/control.sock"))
    ]


def agents_by_gateway(args: argparse.Namespace, timeout_s: float) -> list[Agent]:
    """Return the agents of all nodes that the gateway knows; raises NotReachable."""
    api = GatewayApi(find_gateway(args), timeout_s=timeout_s)
    try:
        nodes = api.get("status", has="nodes")["nodes"]
    except NotReachable as error:
        if not args.url and any(map(_is_closed, SYSTEM_DIRECTORY.glob("node*"))):
            msg = (
                "you may not use the control socket of this host's agent: join the group rolemesh "
                f"(sudo usermod -aG rolemesh $USER, then log in again), or use sudo; and {error}"
            )
            raise NotReachable(msg) from error
        raise
    return [
        Agent(node=node, api=api, path=("nodes", str(node["node_id"]), "node")) for node in nodes
    ]


def _is_closed(directory: Path) -> bool:
    return directory.is_dir() and not os.access(directory, os.X_OK)
