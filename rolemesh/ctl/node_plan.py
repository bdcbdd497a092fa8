"""`rolemeshctl node plan`: what placement would do with a model now, and why."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from rolemesh.ctl import output
from rolemesh.ctl.agents import Agent, agent_with_model, find_agents, the_agent
from rolemesh.ctl.outcomes import EXIT_OK
from rolemesh.ctl.output import Cell


def run(args: argparse.Namespace) -> int:
    """Print the plan of one model, or those of all in short."""
    if args.model is None:
        agent = the_agent(find_agents(args))
    else:
        agent = agent_with_model(args, args.model)
    reply = agent.get("plan", has="plans", model=args.model)
    if args.json:
        output.put_json(reply)
    elif args.model is None:
        _put_all(agent, reply["plans"])
    else:
        for plan in reply["plans"]:
            _put_plan(agent, plan)
    return EXIT_OK


def _put_all(agent: Agent, plans: list[Mapping[str, Any]]) -> None:
    if not plans:
        output.note("no model is configured there (models:)")
        return
    output.put_table(
        ("MODEL", "NEEDS", "WOULD RUN ON", "IN PLACE OF", "WHY NOT"),
        (
            (
                plan["model_id"],
                output.memory(plan.get("need_mib")),
                Cell(str(plan["instance"]), "green") if _is_possible(plan) else None,
                ", ".join(_displaced(agent, plan)),
                _why_not(plan),
            )
            for plan in plans
        ),
    )


def _put_plan(agent: Agent, plan: Mapping[str, Any]) -> None:
    need, model_id = plan.get("need_mib"), output.clean(str(plan["model_id"]))
    needs = "what it needs cannot be told" if need is None else f"needs {output.memory(need)}"
    if not _is_possible(plan):
        verdict = output.coloured("nowhere now", "red" if not plan.get("may_pass") else "yellow")
        output.put(f"{model_id} ({needs}): {verdict}: {output.clean(_why_not(plan))}")
    elif plan.get("outcome") == "joins":
        output.put(
            f"{model_id} ({needs}): is on {output.clean(str(plan['instance']))}, or on its way there"
        )
    else:
        displaced = _displaced(agent, plan)
        instead = f", in place of {', '.join(displaced)}" if displaced else ""
        where = output.coloured(output.clean(str(plan["instance"])), "green")
        output.put(f"{model_id} ({needs}): on {where}{output.clean(instead)}")
    if plan.get("sites"):
        output.put()
        output.put_table(
            ("", "INSTANCE", "OVER", "WOULD FIND", "HAS TO GO", "WHY NOT"),
            (_site_row(agent, plan, site) for site in plan["sites"]),
        )


def _is_possible(plan: Mapping[str, Any]) -> bool:
    return plan.get("outcome") != "refused" and not plan.get("problem")


def _why_not(plan: Mapping[str, Any]) -> str:
    return str(plan.get("problem") or plan.get("reason") or "")


def _displaced(agent: Agent, plan: Mapping[str, Any]) -> list[str]:
    """Return what has to leave before the model is started where it is to run."""
    chosen = next((each for each in plan.get("sites", []) if _is_chosen(plan, each)), None)
    return [] if chosen is None else _leaving(agent, chosen)


def _is_chosen(plan: Mapping[str, Any], site: Mapping[str, Any]) -> bool:
    if plan.get("outcome") != "placed" or plan.get("problem"):
        return False
    here = (plan.get("instance"), plan.get("devices"))
    return (site["instance"], site.get("devices")) == here


def _leaving(agent: Agent, site: Mapping[str, Any]) -> list[str]:
    """Return what has to leave for a site: what its instance runs, then others."""
    busy = site.get("busy", [])
    return [
        f"{each['model_id']} ({name}{', busy' if name in busy else ''})"
        for name in (site["instance"], *site.get("evicts", []))
        if (each := agent.instance(name)) and each.get("model_id") and _is_loaded(each)
    ]


def _is_loaded(instance: Mapping[str, Any]) -> bool:
    return instance.get("state") not in ("stopped", "failed")


def _site_row(agent: Agent, plan: Mapping[str, Any], site: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        Cell("->", "green") if _is_chosen(plan, site) else Cell("", "dim"),
        f"{site['instance']} (new)" if site.get("new") else site["instance"],
        ", ".join(_device_names(agent, site.get("devices", []))),
        output.memory(min(site["free_mib"].values())) if site.get("free_mib") else None,
        None if site.get("reason") else ", ".join(_leaving(agent, site)),
        site.get("reason"),
    )


def _device_names(agent: Agent, devices: list[str]) -> Iterator[str]:
    names = {gpu.get("uuid"): gpu.get("gpu") for gpu in agent.node.get("gpus", [])}
    return (str(names.get(device) or device) for device in devices)
