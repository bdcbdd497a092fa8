"""`rolemeshctl unload`: empty an instance, or every instance of a model."""

import argparse
from typing import Final

from rolemesh.ctl import output
from rolemesh.ctl.agents import add_node_option, choose_agent, find_agents
from rolemesh.ctl.gateway_address import add_gateway_options
from rolemesh.ctl.outcomes import EXIT_OK

DESCRIPTION: Final = (
    "Unload a model from every instance that has it, or whatever one instance has. Running requests\n"
    "finish first. The next request for the model loads it again."
)
EXAMPLES: Final = (
    "rolemeshctl unload coder-gguf",
    "rolemeshctl unload gpu0 --node gpubox",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("what", metavar="MODEL|INSTANCE", help="as `models` and `nodes` show them")
    add_node_option(parser)
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Unload."""
    name, agents = args.what, find_agents(args)
    if any(agent.instance(name) for agent in agents):
        kind = "instances"
        agent = choose_agent(agents, lambda each: each.instance(name), what=f"instance {name}")
    else:
        kind = "models"
        what = f"model or instance {name}"
        agent = choose_agent(agents, lambda each: each.has_model(name), what=what)
    reply = agent.post(kind, name, "unload")
    if args.json:
        output.put_json(reply)
    elif not reply.get("instances"):
        output.put(f"nothing of {name} is loaded on {agent.node_id}")
    else:
        left = ", ".join(map(str, reply["instances"]))
        output.put(
            output.clean(f"{agent.node_id}: {left} is being emptied; running requests finish first")
        )
    return EXIT_OK
