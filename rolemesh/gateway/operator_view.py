"""What operators are shown of nodes, aliases, requests and keys; pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rolemesh.config.settings import ClientKey, Priority
from rolemesh.gateway.admission import Claim
from rolemesh.gateway.inference import InferenceJob
from rolemesh.gateway.registry import Node, NodeState
from rolemesh.gateway.routing_table import CandidateKey, Target
from rolemesh.names import Alias
from rolemesh.wire import ModelReport


def node_json(node: Node, *, now: float, in_flight: Mapping[CandidateKey, int]) -> dict[str, Any]:
    """Return an element of `nodes`; `now` is the clock of `heard_at`."""
    report = node.report
    running: Counter[str | None] = Counter()
    for (upstream, model, _), slots in in_flight.items():
        if upstream == report.node_id:
            running[model] += slots
    never = node.state is NodeState.RESTORED
    return {
        "node_id": report.node_id,
        "state": node.state.value,
        "drained": node.is_drained,
        "base_url": report.base_url,
        "version": report.version,
        "heard_s_ago": None if never else round(now - node.heard_at, 1),
        "reason": node.unusable(now),
        "models": [_model_json(model, running[model.model_id]) for model in report.models],
        "instances": report.inventory.get("instances", []),
        "gpus": report.inventory.get("gpus", []),
        "host": report.inventory.get("host", {}),
    }


def _model_json(model: ModelReport, in_flight: int) -> dict[str, Any]:
    unknown = {"slots": None, "slots_free": None}
    return {**unknown, **model.to_json(), "in_flight": in_flight}


def alias_json(target: Target, *, running: int, queued: int) -> dict[str, Any]:
    """Return an element of `aliases`."""
    return {
        "alias": target.alias,
        "type": "proxy" if target.role is None else "discovered",
        "role": target.role,
        "usable": target.usable,
        "reason": target.reason,
        "priority": target.priority.name.lower(),
        "fallback": list(target.fallback),
        "queued": queued,
        "running": running,
        "candidates": [
            {
                "upstream": each.upstream.name,
                "model": each.model,
                "instance": each.instance,
                "warmth": each.warmth.name.lower(),
                "usable": not each.unusable,
                "reason": each.unusable,
            }
            for each in target.candidates
        ],
    }


class RequestsView:
    """The requests under way; `waiting` are those that wait for a slot, the next one first."""

    def __init__(self, jobs: Iterable[InferenceJob], waiting: Iterable[Claim], now: float) -> None:
        self._now = now
        self._places = {id(claim): place for place, claim in enumerate(waiting, 1)}
        self._jobs = list(jobs)

    def _place(self, job: InferenceJob) -> int | None:
        return self._places.get(id(job.claim)) if job.alias else None

    @property
    def queued(self) -> int:
        """Return how many wait for a slot."""
        return sum(self._place(job) is not None for job in self._jobs)

    @property
    def running(self) -> int:
        """Return how many do not."""
        return len(self._jobs) - self.queued

    def count_by_alias(self) -> tuple[Counter[Alias], Counter[Alias]]:
        """Return how many run and how many wait, by the alias that was asked for."""
        queued = Counter(job.alias for job in self._jobs if self._place(job) is not None)
        return Counter(job.alias for job in self._jobs) - queued, queued

    def count_by_client(self) -> Counter[str]:
        """Return how many run, by the name of the key."""
        running = (job for job in self._jobs if job.alias and self._place(job) is None)
        return Counter(job.claim.principal.name for job in running)

    def to_json(self) -> list[dict[str, Any]]:
        """Return `requests`, the oldest first."""
        jobs = sorted(self._jobs, key=lambda job: job.request.received_at)
        return [self._one(job) for job in jobs]

    def _one(self, job: InferenceJob) -> dict[str, Any]:
        request, candidate, place = job.request, job.candidate, self._place(job)
        age_s = self._now - request.received_at
        is_known = bool(job.alias)
        waits_first = place is not None and not job.attempts
        return {
            "request_id": request.request_id,
            "alias": job.alias or None,
            "model": candidate and candidate.model,
            "node": candidate and candidate.upstream.name,
            "instance": candidate and candidate.instance,
            "client": job.claim.principal.name if is_known else None,
            "phase": job.phase() if place is None else "queue",
            "priority": Priority(job.claim.priority).name.lower() if is_known else None,
            "queue_position": place,
            "age_s": round(age_s, 1),
            "queued_s": round(age_s if waits_first else job.queue_s, 1),
            "attempts": job.attempts,
            "bytes_out": job.client.bytes_out,
            "path": request.path,
            "streaming": job.body.stream if is_known else None,
        }


def key_json(key: ClientKey, *, running: int, requests: int) -> dict[str, Any]:
    """Return an element of `keys`; `requests` counts those that have ended since the start."""
    return {
        "name": key.name,
        "roles": None if key.roles is None else sorted(key.roles),
        "priority": None if key.priority is None else key.priority.name.lower(),
        "max_concurrent": key.max_concurrent,
        "requests_per_minute": key.requests_per_minute,
        "admin": key.admin,
        "running": running,
        "requests": requests,
    }
