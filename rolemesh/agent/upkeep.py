"""What the fleet does without being asked: unloads what nobody uses, loads what shall be warm; pure."""

from collections.abc import Iterable, Iterator

from rolemesh.agent.placement_view import PlacementView
from rolemesh.config.settings import ModelSettings, NodeSettings
from rolemesh.names import InstanceName, ModelId


def unused(
    views: Iterable[PlacementView], settings: NodeSettings, *, now: float
) -> tuple[InstanceName, ...]:
    """Return the instances whose model nobody has used for its `idle_unload_s`."""
    return tuple(
        view.name
        for view in views
        if view.is_idle
        and not view.pinned
        and (limit_s := _limit_s(view, settings)) is not None
        and now - max(view.last_used, view.ready_since) >= limit_s
    )


def cold_though_warm(
    views: Iterable[PlacementView], settings: NodeSettings
) -> Iterator[ModelSettings]:
    """Yield the models that shall be warm and that no instance has or is about to have."""
    coming = tuple(views)
    for model in settings.models.values():
        if model.warm and not any(view.is_bound_for(model.model_id) for view in coming):
            yield model


def wants_upkeep(settings: NodeSettings) -> bool:
    """Tell whether these settings ask for any of this."""
    return settings.policy.idle_unload_s > 0 or any(
        model.warm or model.idle_unload_s for model in settings.models.values()
    )


def _limit_s(view: PlacementView, settings: NodeSettings) -> float | None:
    """Return for how long the model may lie unused; None: for ever."""
    model = settings.models.get(view.model_id or ModelId(""))
    if model is None or model.warm:
        return None
    own_s = model.idle_unload_s
    return (settings.policy.idle_unload_s if own_s is None else own_s) or None
