"""`rolemeshctl trace`: what became of one request, on every host that had to do with it.

This host's journal, and what gateway and nodes remember of their last requests.
"""

import argparse
import re
from typing import Any, Final

from rolemesh.ctl import output
from rolemesh.ctl.gateway_address import add_gateway_options, find_gateway
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.host_journal import JournalUnreadable, read_entries
from rolemesh.ctl.outcomes import EXIT_NOT_THERE, EXIT_OK, BadUsage, CtlError
from rolemesh.ctl.trace_records import (
    TraceRecord,
    engine_window,
    from_gateway,
    from_journal,
    in_order,
    merged,
)

DESCRIPTION: Final = (
    "Show what became of one request: from this host's journal, as far as you may read it, and from\n"
    "what the gateway and the nodes remember of their last requests. The times are those of each\n"
    "host's clock. Lines marked `inferred` are the llama-server's, which names no requests: they\n"
    "came from the request's instance while the request was there, and may be another's."
)
EXAMPLES: Final = (
    "rolemeshctl trace req-7f3a5b           # the X-Request-Id of the reply, or of `ps`",
    "sudo rolemeshctl trace req-7f3a5b      # with the journal, for who may not read it",
)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TIME_WIDTH: Final = len("2026-01-01 00:00:00.000")
_SHOWN: Final = (
    ("attempts", "{} tries"),
    ("queue_ms", "waited {} ms"),
    ("first_byte_ms", "first byte after {} ms"),
    ("client", "key {}"),
    ("node", "node {}"),
    ("instance", "instance {}"),
    ("reason", "{}"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("request", metavar="REQUEST_ID", help="the reply's X-Request-Id")
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print all that is known."""
    request_id = args.request
    if not _REQUEST_ID.fullmatch(request_id):
        msg = f"{request_id!r} is not a request id: those are of letters, digits and ._:-"
        raise BadUsage(msg)
    journal, unread = _from_journal(request_id)
    told, unreachable, silence = _from_gateway(args, request_id)
    records = merged(journal, told)
    records = in_order([*records, *_engine_lines(journal)])
    problems = [*unread, *(str(error) for error in silence)]
    if args.json:
        output.put_json(
            {
                "request_id": request_id,
                "records": [record.to_json() for record in records],
                "unreachable": unreachable,
                "problems": problems,
            }
        )
    else:
        _put(records)
        for node in unreachable:
            output.note(f"node {node.get('node_id')} was not heard: {node.get('reason')}")
        for problem in problems:
            output.note(problem)
    if records:
        return EXIT_OK
    if silence:
        # Nothing can be said without the gateway, and it is its absence that counts.
        return silence[0].exit_code
    if not args.json:
        output.complain(f"nobody remembers a request {request_id}")
    return EXIT_NOT_THERE


def _from_journal(request_id: str) -> tuple[list[TraceRecord], list[str]]:
    try:
        entries = read_entries(f"ROLEMESH_REQUEST_ID={request_id}")
    except JournalUnreadable as error:
        return [], [str(error)]
    return [from_journal(at, entry) for at, entry in entries], []


def _from_gateway(
    args: argparse.Namespace, request_id: str
) -> tuple[list[TraceRecord], list[dict[str, Any]], list[CtlError]]:
    """Return what gateway and nodes say, which nodes say nothing, and why the gateway does not."""
    try:
        with output.Progress() as progress:
            progress.say("asking the gateway and the nodes")
            reply = GatewayApi(find_gateway(args)).get("trace", request_id, has="records")
    except BadUsage:
        raise
    except CtlError as error:
        return [], [], [error]
    return list(map(from_gateway, reply["records"])), reply.get("unreachable", []), []


def _engine_lines(records: list[TraceRecord]) -> list[TraceRecord]:
    """Return the lines of this host's llama-servers that were written meanwhile."""
    lines = []
    for window in filter(None, map(engine_window, records)):
        instance, since, until = window
        try:
            unit = f"_SYSTEMD_UNIT=rolemesh-llama@{instance}.service"
            entries = read_entries(unit, since=since, until=until)
        except JournalUnreadable:
            continue
        # What rolemesh-llama itself says has a logger; the llama-server's lines have none.
        lines += [
            from_journal(at, entry, is_inferred=True)
            for at, entry in entries
            if "LOGGER" not in entry
        ]
    return lines


def _put(records: list[TraceRecord]) -> None:
    width = max((len(record.source) for record in records), default=0)
    for record in records:
        at = "-" if record.at is None else f"{record.at.astimezone():%Y-%m-%d %H:%M:%S.%f}"[:-3]
        first, *more = map(output.clean, _text(record).splitlines() or [""])
        head = f"{at:{_TIME_WIDTH}}  {output.clean(record.source):{width}}  "
        if record.is_inferred:
            first = output.coloured(f"{first}  (inferred)", "dim")
        output.put(head + first)
        for line in more:
            output.put(" " * len(head) + line)


def _text(record: TraceRecord) -> str:
    fields = record.fields
    if "status" not in fields:
        return record.message or str(dict(fields))
    what = record.message or (
        f"{fields.get('alias') or fields.get('model_id') or fields.get('path', 'request')}: "
        f"{fields['status']} in {fields.get('total_ms', '?')} ms"
    )
    fields = {name: value for name, value in fields.items() if (name, value) != ("attempts", "1")}
    more = [form.format(fields[name]) for name, form in _SHOWN if fields.get(name)]
    phase = fields.get("phase", "done")
    ended = [] if phase == "done" else [f"ended in phase {phase}"]
    return f"{what} ({', '.join((*ended, *more))})"
