"""`rolemeshctl node gpus`: the GPUs of a node, and whose processes are there."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rolemesh.ctl import output
from rolemesh.ctl.agents import find_agents, the_agent
from rolemesh.ctl.outcomes import EXIT_OK

HEAD: Final = ("GPU", "NAME", "MEMORY", "USED", "BUSY", "TEMP", "POWER", "INSTANCES")


def run(args: argparse.Namespace) -> int:
    """Print the GPUs, after numbering them anew if that is asked for."""
    agent = the_agent(find_agents(args))
    if args.renumber:
        renumbered = agent.post("gpus", "renumber")
        if args.json:
            output.put_json(renumbered)
        else:
            _put_renumbered(renumbered.get("renumbered", {}))
        return EXIT_OK
    node = agent.get(has="gpus")
    if args.json:
        output.put_json({"node_id": node.get("node_id"), "gpus": node["gpus"]})
        return EXIT_OK
    if node["gpus"]:
        output.put_table(
            (*HEAD, "PROCESSES", "UUID"),
            ((*gpu_row(node, gpu), _processes(gpu), gpu.get("uuid")) for gpu in node["gpus"]),
        )
    else:
        output.note(f"{agent.node_id} has no GPU")
    for problem in gpu_problems(node):
        output.note(problem)
    return EXIT_OK


def gpu_row(node: Mapping[str, Any], gpu: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what a line about a GPU says below HEAD."""
    busy, temperature, power = (gpu.get(key) for key in ("utilisation", "temperature_c", "power_w"))
    return (
        gpu.get("gpu"),
        gpu.get("name"),
        output.memory(gpu.get("memory_total_mib")),
        output.memory(gpu.get("memory_used_mib")),
        None if busy is None else f"{busy} %",
        None if temperature is None else f"{temperature} C",
        None if power is None else f"{power:.0f} W",
        ", ".join(_instances_on(node, gpu)),
    )


def gpu_problems(node: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with GPUs or keeps them from being seen."""
    for gpu in node.get("gpus", []):
        for health in gpu.get("health", []):
            yield f"{gpu.get('gpu')}: {health}"
    yield from map(str, node.get("host", {}).get("problems", []))


def _instances_on(node: Mapping[str, Any], gpu: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is loaded there, or on its way in or out."""
    for each in node.get("instances", []):
        if each.get("model_id") and gpu.get("uuid") in each.get("devices", []):
            yield f"{each.get('instance')}: {each['model_id']}"


def _processes(gpu: Mapping[str, Any]) -> str:
    return ", ".join(
        str(each.get("pid"))
        + (f" ({output.memory(each['memory_mib'])})" if each.get("memory_mib") else "")
        for each in gpu.get("processes", [])
    )


def _put_renumbered(renumbered: Mapping[str, Any]) -> None:
    if not renumbered:
        output.put("every GPU keeps its number")
    for uuid, names in sorted(renumbered.items()):
        output.put(f"{output.clean(uuid)}: {names.get('was')} -> {names.get('is') or 'forgotten'}")
