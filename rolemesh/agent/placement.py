"""Which instance shall run a model now, or why none can; pure.

In this order:
1. an instance that has the model, or is on its way to it: join;
2. the instance whose settings name the model, if it is empty or idle;
3. an empty instance, GPU before CPU, one that no settings claim before one that some do;
4. an idle instance that is not pinned, least recently used first: switch.
Idle means loaded, without lease and without a request waiting for what it runs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rolemesh.agent.desired import is_gpu
from rolemesh.agent.instance import InstanceState
from rolemesh.names import InstanceName, ModelId

_EMPTY = frozenset({InstanceState.STOPPED, InstanceState.FAILED})
_TO_READY = frozenset({InstanceState.STARTING, InstanceState.LOADING, InstanceState.READY})
_LEAVING = frozenset({InstanceState.DRAINING, InstanceState.STOPPING})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementView:
    """What placement must know of one instance.

    `assigned` is the model its settings name, `missing` why it cannot run at all. `leases` are
    requests it answers now, `waiting` requests that wait for the model it runs; `last_used` is monotonic.
    """

    name: InstanceName
    state: InstanceState
    model_id: ModelId | None = None
    next_model_id: ModelId | None = None
    assigned: ModelId | None = None
    pinned: bool = False
    missing: str = ""
    leases: int = 0
    waiting: int = 0
    last_used: float = 0.0

    @property
    def is_empty(self) -> bool:
        """Nothing runs there and nothing is about to."""
        return self.state in _EMPTY

    @property
    def is_idle(self) -> bool:
        """Something is loaded there that nobody uses."""
        return self.state is InstanceState.READY and not self.leases and not self.waiting

    def is_bound_for(self, model_id: ModelId) -> bool:
        """Tell whether it runs the model or will without being asked again."""
        bound_for = self.next_model_id if self.state in _LEAVING else self.model_id
        return bound_for == model_id and (self.state in _TO_READY or self.state in _LEAVING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The instance for the model; `joins`: it is on its way there already."""

    instance: InstanceName
    joins: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """No instance can take the model. `may_pass`: one could as soon as its work is done."""

    reasons: Mapping[InstanceName, str]
    may_pass: bool

    def __str__(self) -> str:
        if not self.reasons:
            return "this node has no instance"
        return "; ".join(f"{name}: {reason}" for name, reason in self.reasons.items())


def place_model(model_id: ModelId, instances: Iterable[PlacementView]) -> Placed | Refused:
    """Return where `model_id` shall run; `instances` in order of preference."""
    views = tuple(instances)
    joined = next((view for view in views if view.is_bound_for(model_id)), None)
    if joined is not None:
        return Placed(instance=joined.name, joins=True)
    usable = [view for view in views if not view.missing]
    for choose in (_assigned, _empty, _idle):
        chosen = choose(model_id, usable)
        if chosen is not None:
            return Placed(instance=chosen.name)
    return _refuse(model_id, views)


def _assigned(model_id: ModelId, views: list[PlacementView]) -> PlacementView | None:
    free = (view for view in views if view.is_empty or view.is_idle)
    return next((view for view in free if view.assigned == model_id), None)


def _empty(model_id: ModelId, views: list[PlacementView]) -> PlacementView | None:
    empty = [view for view in views if view.is_empty and not _is_kept_for_another(view, model_id)]
    return min(empty, key=_emptiness_rank, default=None)


def _emptiness_rank(view: PlacementView) -> tuple[bool, bool, bool]:
    return not is_gpu(view.name), view.assigned is not None, view.state is InstanceState.FAILED


def _idle(model_id: ModelId, views: list[PlacementView]) -> PlacementView | None:
    idle = [view for view in views if view.is_idle and not view.pinned]
    return min(idle, key=lambda view: (not is_gpu(view.name), view.last_used), default=None)


def _is_kept_for_another(view: PlacementView, model_id: ModelId) -> bool:
    return view.pinned and view.assigned is not None and view.assigned != model_id


def _refuse(model_id: ModelId, views: tuple[PlacementView, ...]) -> Refused:
    refusals = {view.name: _why_not(model_id, view) for view in views}
    return Refused(
        reasons={name: reason for name, (reason, _) in refusals.items()},
        may_pass=any(may_pass for _, may_pass in refusals.values()),
    )


def _why_not(model_id: ModelId, view: PlacementView) -> tuple[str, bool]:
    """Return why an instance does not take the model, and whether that passes by itself."""
    if view.missing:
        return view.missing, False
    if view.is_empty:
        return f"pinned to {view.assigned}", False
    if view.pinned and view.assigned != model_id:
        return f"pinned, runs {view.model_id}", False
    if view.state in _LEAVING:
        return f"is {view.state.value} {view.model_id}", True
    if view.state is not InstanceState.READY:
        return f"is loading {view.model_id}", True
    if view.leases:
        return f"busy with {view.model_id} (requests: {view.leases})", True
    return f"requests wait for its {view.model_id}", True
