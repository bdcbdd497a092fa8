"""Settings, fleet and machine -> what gateways and people are told; pure.

A model is usable when it is ready, loading, or can be loaded without an operator.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from rolemesh import __version__
from rolemesh.agent.failures import Failure
from rolemesh.agent.fleet_snapshot import FleetSnapshot, InstanceSnapshot
from rolemesh.agent.instance import InstanceState
from rolemesh.agent.observation import HostObservation
from rolemesh.agent.programs import Programs
from rolemesh.config.settings import ModelSettings, NodeSettings
from rolemesh.wire import InstanceReport, ModelReport, ModelState, NodeReport

_PERCENT: Final = re.compile(r"\b([0-9]{1,3}) ?%")
_ON_ITS_WAY: Final = frozenset({InstanceState.STARTING, InstanceState.LOADING})
_LEAVING: Final = frozenset({InstanceState.DRAINING, InstanceState.STOPPING})


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """Everything a report is made of, at one moment; `now` is the clock of the failures."""

    settings: NodeSettings
    fleet: FleetSnapshot
    host: HostObservation
    now: float


def report_models(view: NodeView) -> tuple[ModelReport, ...]:
    """Return the state of every configured model."""
    return tuple(_report_model(model, view) for model in view.settings.models.values())


def _report_model(model: ModelSettings, view: NodeView) -> ModelReport:
    instances = [each for each in view.fleet.instances if each.view.model_id == model.model_id]
    ready = [each for each in instances if each.view.state is InstanceState.READY]
    slots = sum(each.slots for each in ready) or model.parallel
    held = sum(each.slots_held for each in ready)
    state = _model_state(model, view, is_ready=bool(ready))
    reason = _why_unusable(model, view, state)
    return ModelReport(
        model_id=model.model_id,
        roles=model.roles,
        state=state,
        usable=not reason,
        reason=reason,
        context_size=model.context_size,
        slots=slots,
        slots_free=max(0, slots - held),
        progress=_progress(instances) if state is ModelState.LOADING else None,
        load_estimate_s=view.fleet.load_s.get(model.model_id),
        has_room=state is not ModelState.COLD or model.model_id not in view.fleet.refused,
        instances=tuple(
            InstanceReport(
                name=each.view.name,
                slots=each.slots,
                slots_free=max(0, each.slots - each.slots_held),
            )
            for each in ready
        ),
    )


def _model_state(model: ModelSettings, view: NodeView, *, is_ready: bool) -> ModelState:
    if is_ready:
        return ModelState.READY
    views = [each.view for each in view.fleet.instances]
    if any(
        (each.state in _ON_ITS_WAY and each.model_id == model.model_id)
        or (each.state in _LEAVING and each.next_model_id == model.model_id)
        for each in views
    ):
        return ModelState.LOADING
    return ModelState.FAILED if model.model_id in view.fleet.failures else ModelState.COLD


def _why_unusable(model: ModelSettings, view: NodeView, state: ModelState) -> str:
    """Return why the model cannot answer without an operator or a while; "" when it can."""
    if state in {ModelState.READY, ModelState.LOADING}:
        return ""
    problem = view.host.model_problems.of(model.model_id)
    if problem:
        return problem
    failure = view.fleet.failures.get(model.model_id)
    if failure is not None and failure.retry_at > view.now:
        return _failed_text(failure)
    refused = view.fleet.refused.get(model.model_id)
    if refused is not None and not refused.may_pass:
        return f"no instance can take it: {refused}"
    return ""


def _failed_text(failure: Failure) -> str:
    return f"failed to load: {failure.reason}"


def _progress(instances: Iterable[InstanceSnapshot]) -> float | None:
    """Return how far a load is, as its unit's STATUS says it."""
    for each in instances:
        match = _PERCENT.search(each.status_text)
        if match is not None and each.view.state is InstanceState.LOADING:
            return min(int(match[1]), 100) / 100
    return None


def inventory_json(view: NodeView) -> dict[str, Any]:
    """Return `instances`, `gpus` and `host` of reports and of GET /v1/node."""
    inventory = view.host.inventory
    return {
        "instances": [_instance_json(each, view.host.programs) for each in view.fleet.instances],
        "gpus": [gpu.to_json() for gpu in inventory.gpus],
        "host": {
            **view.host.host.to_json(),
            **view.host.programs.to_json(),
            "nvidia_driver": inventory.driver_version or None,
            "problems": list(inventory.problems),
            "missing": list(what_is_missing(view)),
        },
    }


def _instance_json(instance: InstanceSnapshot, programs: Programs) -> dict[str, Any]:
    """Return an element of `instances`; `program_changed`: its llama-server is not that on disk."""
    facts = instance.facts
    return {
        **instance.to_json(),
        "program_changed": None if facts is None else programs.differ_from(facts),
    }


def build_report(view: NodeView, *, base_url: str, boot_id: str, token: str) -> NodeReport:
    """Return what a gateway is told that shall reach this node at `base_url`."""
    return NodeReport(
        node_id=view.settings.node_id,
        base_url=base_url,
        boot_id=boot_id,
        api_key=token,
        version=__version__,
        models=report_models(view),
        inventory=inventory_json(view),
    )


def what_is_missing(view: NodeView) -> tuple[str, ...]:
    """Return what keeps this node from answering as it should, most general first.

    GPU problems count only where a GPU is wanted: an instance waits for one, or there is no
    instance at all.
    """
    missing: list[str] = []
    if not view.settings.models:
        missing.append("no model is configured (models:)")
    missing += view.host.model_problems.node
    missing += view.host.model_problems.models.values()
    if not view.fleet.instances:
        missing.append("no instance: no GPU, and policy.allow_cpu is false")
        missing += view.host.inventory.problems
    missing += [
        f"{each.view.name}: {each.view.missing}"
        for each in view.fleet.instances
        if each.view.missing
    ]
    missing += [
        f"{model_id} {_failed_text(failure)}"
        for model_id, failure in view.fleet.failures.items()
        if not view.host.model_problems.of(model_id)
    ]
    missing += filter(None, (view.host.state_problem, view.fleet.problem))
    return tuple(dict.fromkeys(missing))


def status_line(view: NodeView, gateways: str) -> str:
    """Return the STATUS line; `gateways` says how many are reached, e.g. `1/2`."""
    instances = ", ".join(_instance_words(each) for each in view.fleet.instances)
    missing = what_is_missing(view)
    parts = [
        f"{_count(len(view.settings.models), 'model')}, "
        f"{_count(len(view.fleet.instances), 'instance')}"
        + (f" ({instances})" if instances else ""),
        f"gateways {gateways}",
    ]
    if missing:
        parts.append("missing: " + " | ".join(missing))
    return "; ".join(parts).replace("\n", " ")


def _instance_words(instance: InstanceSnapshot) -> str:
    view = instance.view
    if view.missing:
        return f"{view.name} unavailable"
    if view.state is InstanceState.STOPPED:
        return f"{view.name} cold"
    return f"{view.name} {view.state.value} {view.next_model_id or view.model_id}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
