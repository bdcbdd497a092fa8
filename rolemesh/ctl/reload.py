"""`rolemeshctl reload`: have the gateway read its configuration again, or hand over to a new program."""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any, Final

from rolemesh.ctl import output
from rolemesh.ctl.gateway_address import add_gateway_options, find_gateway
from rolemesh.ctl.gateway_api import ApiError, GatewayApi
from rolemesh.ctl.outcomes import EXIT_CONFIG, EXIT_OK

DESCRIPTION: Final = (
    "Have the gateway read its configuration again. A configuration that is refused changes\n"
    "nothing: everything that is wrong with it is printed, and the exit status is 78. Where the\n"
    "program was replaced since the gateway began, as by an upgrade, the new one takes over."
)
EXAMPLES: Final = ("rolemeshctl reload", "rolemeshctl config check && rolemeshctl reload")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Reload, and print what came of it."""
    api = GatewayApi(find_gateway(args))
    try:
        with output.Progress() as progress:
            progress.say("reloading")
            reply = api.post("reload")
    except ApiError as refusal:
        if "problems" not in refusal.error:
            raise
        if args.json:
            output.put_json({"error": refusal.error})
        else:
            put_problems(refusal.error["problems"])
            output.complain("this configuration is refused; the one before it stays in force")
        return EXIT_CONFIG
    if args.json:
        output.put_json(reply)
        return EXIT_OK
    for warning in reply.get("warnings", []):
        output.note(f"warning: {_text(warning)}")
    process = reply.get("process")
    if isinstance(process, Mapping):
        output.put(f"handed over to version {process.get('version')}, pid {process.get('pid')}")
    else:
        output.put(f"reloaded: configuration {reply.get('generation')} is in force")
    return EXIT_OK


def put_problems(problems: Iterable[Any]) -> None:
    """Write problems of a configuration, ours or in JSON, to stderr, as `--check` does."""
    for problem in problems:
        output.note(_text(problem))


def _text(problem: Any) -> str:
    if not isinstance(problem, Mapping):
        return str(problem)
    parts = (problem.get("where"), problem.get("key"), problem.get("message"))
    return ": ".join(str(part) for part in parts if part)
