"""GET /metrics: what monitoring is told. Looks at what is known; probes nothing, loads nothing."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sized
from http import HTTPStatus
from typing import Final

from aiohttp import web

from rolemesh import __version__
from rolemesh.gateway.admission import Admission
from rolemesh.gateway.client_api import Identify
from rolemesh.gateway.registry import NodeState, Registry
from rolemesh.gateway.request_counts import BOUNDS_S, AliasCounts, Histogram, RequestCounts
from rolemesh.gateway.tables import RoutingTables
from rolemesh.relay.application import route
from rolemesh.relay.replies import Reply
from rolemesh.runtime.exposition import (
    CONTENT_TYPE,
    Family,
    Sample,
    exposition,
    histogram,
    labelled,
)
from rolemesh.runtime.log import lost_records
from rolemesh.runtime.process_numbers import process_families
from rolemesh.runtime.request_history import RequestHistory

AT_ONCE: Final = 200
"""After so many lines requests have their turn."""


class Metrics:
    """Counts what ends, and looks at what there is when it is asked; `live` are requests under way."""

    def __init__(
        self,
        *,
        history: RequestHistory,
        registry: Registry,
        tables: RoutingTables,
        admission: Admission,
        live: Callable[[], Sized],
    ) -> None:
        self._history = history
        self._registry = registry
        self._tables = tables
        self._admission = admission
        self._live = live
        self._counts = RequestCounts()
        history.count = self._counts.count

    @property
    def counts(self) -> RequestCounts:
        """Return what is counted, up to now."""
        self._history.count_new()
        return self._counts

    def route(self, identify: Identify) -> web.RouteDef:
        """Return the route; `identify` raises for those who may not ask."""

        async def get_metrics(request: web.Request) -> Reply:
            identify(request)
            text = (await self._text()).encode("utf-8", "backslashreplace")
            fields = (("Content-Type", CONTENT_TYPE),)
            return Reply(status=HTTPStatus.OK, body=text, fields=fields)

        return route("GET", "/metrics", get_metrics)

    async def _text(self) -> str:
        lines: list[str] = []
        for line in exposition(self._families()):
            lines.append(line)
            if len(lines) % AT_ONCE == 0:
                await asyncio.sleep(0)
        return "".join(lines)

    def _families(self) -> Iterator[Family]:
        yield _family(
            "rolemesh_build_info", "gauge", "The version.", [labelled(1, {"version": __version__})]
        )
        yield from request_families(self.counts)
        yield from self._now()
        yield from self._nodes()
        text = "Log records that the journal did not take."
        yield _family("rolemesh_log_records_lost_total", "counter", text, [Sample(lost_records())])
        yield from process_families()

    def _now(self) -> Iterator[Family]:
        table, waiting = (
            self._tables.current,
            Counter(claim.alias for claim in self._admission.waiting()),
        )
        yield _family(
            "rolemesh_requests_in_progress",
            "gauge",
            "Requests under way, those that wait included.",
            [Sample(len(self._live()))],
        )
        yield _family(
            "rolemesh_requests_queued",
            "gauge",
            "Requests that wait for a slot, by the alias whose candidates they wait for.",
            [labelled(waiting[alias], {"alias": alias}) for alias in table.targets],
        )
        yield _family(
            "rolemesh_alias_usable",
            "gauge",
            "Whether an alias can answer (1), if need be after a load.",
            [
                labelled(int(target.usable), {"alias": target.alias})
                for target in table.targets.values()
            ],
        )
        yield _family(
            "rolemesh_slots_in_use",
            "gauge",
            "Slots that requests of this gateway hold.",
            [
                labelled(slots, _place(upstream, model, instance))
                for (upstream, model, instance), slots in self._admission.load.in_flight.items()
            ],
        )

    def _nodes(self) -> Iterator[Family]:
        nodes = self._registry.nodes.values()
        states = Counter(node.state for node in nodes)
        yield _family(
            "rolemesh_nodes",
            "gauge",
            "Nodes by whether they are heard of; only live ones are in routing.",
            [labelled(states[state], {"state": state.value}) for state in NodeState],
        )
        yield _family(
            "rolemesh_nodes_drained",
            "gauge",
            "Nodes that an operator has drained.",
            [Sample(sum(node.is_drained for node in nodes))],
        )
        models = [(node.report.node_id, model) for node in nodes for model in node.report.models]
        for name, text in (("slots", "Slots there are"), ("slots_free", "Slots that are free")):
            yield _family(
                f"rolemesh_node_{name}",
                "gauge",
                f"{text}, as the nodes said last.",
                [
                    labelled(value, {"node": node_id, "model": model.model_id})
                    for node_id, model in models
                    if (value := getattr(model, name)) is not None
                ],
            )


def request_families(counts: RequestCounts) -> Iterator[Family]:
    """Yield what is counted of requests."""
    yield _family(
        "rolemesh_requests_total",
        "counter",
        "Requests that have ended, by alias, node and class of status; 499: the client left.",
        [
            labelled(number, {"alias": alias, "node": node, "status": status})
            for (alias, node, status), number in sorted(counts.requests.items())
        ],
    )
    yield _family(
        "rolemesh_requests_refused_total",
        "counter",
        "Those of them that were answered with an error and sent to nobody, by status.",
        [
            labelled(number, {"status": str(status)})
            for status, number in sorted(counts.refused.items())
        ],
    )
    aliases = sorted(counts.aliases.items())
    for name, text in (
        ("attempts", "Attempts that were made."),
        ("retries", "Attempts after the first one of a request."),
        ("fallbacks", "Requests that went on to a fallback of the alias."),
    ):
        samples = [labelled(getattr(each, name), {"alias": alias}) for alias, each in aliases]
        yield _family(f"rolemesh_{name}_total", "counter", text, samples)
    for name, text in (
        ("queue", "How long requests waited for a slot."),
        ("first_byte", "From the arrival of a request to the first byte of its answer."),
        ("total", "From the arrival of a request to its end."),
    ):
        yield _family(
            f"rolemesh_request_{name}_seconds", "histogram", text, _histograms(aliases, name)
        )


def _histograms(aliases: Iterable[tuple[str, AliasCounts]], name: str) -> Iterator[Sample]:
    for alias, counts in aliases:
        found: Histogram = getattr(counts, name)
        yield from histogram({"alias": alias}, BOUNDS_S, found.buckets, found.sum_ms / 1000)


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Family:
    return Family(name=name, kind=kind, help=text, samples=samples)


def _place(upstream: str, model: str | None, instance: str | None) -> dict[str, str]:
    return {"node": upstream, "model": model or "", "instance": instance or ""}
