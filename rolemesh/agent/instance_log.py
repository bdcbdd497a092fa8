"""What is logged of an instance's changes of state."""

import logging
from typing import Final

from rolemesh.agent.instance import Instance, InstanceState
from rolemesh.runtime.log import fields
from rolemesh.runtime.operator_events import OperatorEvent

logger = logging.getLogger(__name__)

_LEVELS: Final = {
    InstanceState.LOADING: logging.INFO,
    InstanceState.READY: logging.INFO,
    InstanceState.STOPPED: logging.INFO,
    InstanceState.FAILED: logging.WARNING,
}


def log_change(before: Instance, after: Instance) -> None:
    """Log that an instance went from one state to another."""
    event = _event(before, after)
    level = logging.WARNING if event is not None else _LEVELS.get(after.state, logging.DEBUG)
    model_id = after.next_model_id or after.model_id
    logger.log(
        level,
        "%s: %s -> %s (%s)%s",
        after.name,
        before.state.value,
        after.state.value,
        model_id or "no model",
        f": {after.reason}" if after.reason else "",
        extra=fields(event=event, instance=after.name, model_id=model_id),
    )


def _event(before: Instance, after: Instance) -> OperatorEvent | None:
    if after.state is InstanceState.FAILED:
        return OperatorEvent.MODEL_FAILED
    if before.state is InstanceState.READY and after.state in (
        InstanceState.STARTING,
        InstanceState.LOADING,
    ):
        return OperatorEvent.INSTANCE_CRASHED
    return None
