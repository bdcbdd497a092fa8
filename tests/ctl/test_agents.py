import argparse
import socket
from typing import Any

import pytest

from rolemesh.ctl.agents import (
    Agent,
    add_node_option,
    agent_with_instance,
    agent_with_model,
    agents_by_gateway,
    find_agents,
    the_agent,
)
from rolemesh.ctl.gateway_address import add_gateway_options
from rolemesh.ctl.outcomes import BadUsage, Failed, NotReachable, NotThere
from tests.ctl.conftest import Host


def node(node_id: str, *models: str, instances: tuple[str, ...] = ("gpu0",), **more: Any) -> Any:
    return {
        "node_id": node_id,
        "models": [{"model_id": model} for model in models],
        "instances": [{"instance": name} for name in instances],
        **more,
    }


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_node_option(parser)
    add_gateway_options(parser)
    return parser.parse_args(words)


def names(agents: list[Agent]) -> list[str]:
    return [agent.node_id for agent in agents]


def test_this_hosts_agents_come_before_the_gateway(host: Host) -> None:
    gateway = host.gateway(node("elsewhere", "big"))
    assert names(find_agents(arguments())) == ["elsewhere"]
    host.agent("node", node("box", "coder"))
    second = host.agent("node-b", node("box-b", "planner"))
    assert names(find_agents(arguments())) == ["box", "box-b"]
    assert names(find_agents(arguments("--url", gateway.url))) == ["elsewhere"]
    agent = agent_with_model(arguments(), "planner")
    second.replies["POST /v1/node/models/planner/unload"] = {"instances": []}
    assert agent.post("models", "planner", "unload") == {"instances": []}


def test_a_node_is_looked_for_here_and_then_at_the_gateway(host: Host) -> None:
    gateway = host.gateway(node("elsewhere", "big"))
    host.agent("node", node("box", "coder"))
    assert names(find_agents(arguments("--node", "box"))) == ["box"]
    (agent,) = find_agents(arguments("--node", "elsewhere"))
    gateway.replies["GET nodes/elsewhere/node/plan?model=big"] = {"plans": []}
    assert agent.get("plan", has="plans", model="big", other=None) == {"plans": []}
    with pytest.raises(NotThere, match=r"no node nobody is known; `rolemeshctl nodes`"):
        find_agents(arguments("--node", "nobody"))


def test_a_socket_that_nobody_answers_is_passed_over(host: Host) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(host.socket("node")))
    with pytest.raises(NotReachable, match="no gateway runs on this host"):
        find_agents(arguments())
    host.agent("node-b", node("box-b"))
    assert names(find_agents(arguments())) == ["box-b"]


def test_of_several_that_have_it_none_is_guessed(host: Host) -> None:
    host.gateway(
        node("one", "coder"), node("two", "coder", instances=("gpu0", "gpu1")), node("three")
    )
    args = arguments()
    with pytest.raises(BadUsage, match="have the model coder: one, two; say which with --node"):
        agent_with_model(args, "coder")
    assert agent_with_instance(args, "gpu1").node_id == "two"
    with pytest.raises(NotThere, match="there is no model none on one, three, two; `rolemeshctl"):
        agent_with_model(args, "none")
    with pytest.raises(BadUsage, match="which of the nodes one, three, two"):
        the_agent(find_agents(args))


def test_a_node_that_is_heard_comes_before_one_that_is_not(host: Host) -> None:
    host.gateway(node("one", "coder", state="lost"), node("two", "coder", state="live"))
    assert agent_with_model(arguments(), "coder").node_id == "two"


def test_without_nodes_that_is_what_is_said(host: Host) -> None:
    host.gateway()
    with pytest.raises(NotThere, match="no node has registered"):
        the_agent(find_agents(arguments()))
    with pytest.raises(NotThere, match="no node has registered"):
        agent_with_model(arguments(), "coder")


def test_every_node_is_asked_for_at_the_gateway(host: Host) -> None:
    host.agent("node", node("box"))
    host.gateway(node("box"), node("elsewhere"))
    assert names(agents_by_gateway(arguments(), 5.0)) == ["box", "elsewhere"]


def test_without_agent_and_gateway_both_are_named(host: Host) -> None:
    with pytest.raises(NotReachable, match=r"no agent answers on this host .* no gateway runs"):
        find_agents(arguments())


def test_an_agent_in_the_place_of_a_gateway_is_said(host: Host) -> None:
    agent = host.agent("node", node("box"))
    with pytest.raises(Failed, match="is a node's agent, or a gateway of another version"):
        find_agents(arguments("--url", agent.url))
