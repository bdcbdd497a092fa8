"""What is logged of an instance's changes of state."""

import logging
from typing import Final

from rolemesh.agent.instance import (
    DeviceLost,
    Instance,
    InstanceEvent,
    InstanceState,
    LoadWanted,
    RestartWanted,
    UnloadWanted,
)
from rolemesh.agent.managed_instance import Failed
from rolemesh.names import InstanceName
from rolemesh.runtime.log import fields
from rolemesh.runtime.operator_events import OperatorEvent

logger = logging.getLogger(__name__)

_LEVELS: Final = {
    InstanceState.LOADING: logging.INFO,
    InstanceState.DRAINING: logging.INFO,
    InstanceState.READY: logging.INFO,
    InstanceState.STOPPED: logging.INFO,
    InstanceState.FAILED: logging.WARNING,
    InstanceState.STUCK: logging.ERROR,
}


def log_change(
    before: Instance, after: Instance, event: InstanceEvent, last_failure: Failed | None
) -> None:
    """Log that an instance went from one state to another by `event`."""
    rare = _rare_event(before, after)
    crashed = rare is OperatorEvent.INSTANCE_CRASHED and last_failure is not None
    reason = last_failure.reason if crashed and last_failure else after.reason
    reason = _why_it_leaves(event, after) or reason
    is_loud = rare is not None or isinstance(event, DeviceLost)
    level = max(_LEVELS.get(after.state, logging.DEBUG), logging.WARNING if is_loud else 0)
    model_id = after.model_id or before.model_id
    logger.log(
        level,
        "%s: %s -> %s (%s)%s",
        after.name,
        before.state.value,
        after.state.value,
        model_id or "no model",
        f": {reason}" if reason else "",
        extra=fields(event=rare, instance=after.name, model_id=model_id),
    )


def _why_it_leaves(event: InstanceEvent, after: Instance) -> str:
    match event:
        case UnloadWanted(why=why):
            return why
        case LoadWanted(model_id=model_id) if after.next_model_id:
            return f"makes room for {model_id}"
        case RestartWanted():
            return "its settings changed"
        case DeviceLost(reason=reason):
            return reason
        case _:
            return ""


def _rare_event(before: Instance, after: Instance) -> OperatorEvent | None:
    if after.state is InstanceState.STUCK:
        return OperatorEvent.INSTANCE_STUCK
    if after.state is InstanceState.FAILED:
        return OperatorEvent.MODEL_FAILED
    if before.state is InstanceState.READY and after.state in (
        InstanceState.STARTING,
        InstanceState.LOADING,
    ):
        return OperatorEvent.INSTANCE_CRASHED
    return None


def log_wait(name: InstanceName, *, before: str, after: str) -> None:
    """Write that a start begins to wait for something, or no longer does."""
    if after and not before:
        logger.info("%s: %s", name, after, extra=fields(instance=name))
    elif before and not after:
        logger.info("%s: goes on, its wait is over", name, extra=fields(instance=name))
