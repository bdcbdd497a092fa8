"""What a request is told whose model cannot answer now; `reason` is for machines."""

from rolemesh.agent.failures import Failure
from rolemesh.agent.placement_view import Refused
from rolemesh.errors import SlotsBusy, Unavailable
from rolemesh.names import ModelId

RETRY_S = 5.0
"""What a client is told to wait for a model that is loading, or for room."""

NO_ROOM = "no_room"
"""The reason of what may pass: others have to do their work first."""


def slots_busy(model_id: ModelId) -> SlotsBusy:
    """Return the error of a model whose instances are all in use."""
    return SlotsBusy(f"every slot of '{model_id}' is taken", retry_after_s=1.0)


def unusable(model_id: ModelId, problem: str) -> Unavailable:
    """Return the error of a model that is known not to load."""
    msg = f"'{model_id}' cannot be loaded: {problem}"
    return Unavailable(msg, reason="unusable", retry_after_s=RETRY_S)


def failed(model_id: ModelId, failure: Failure, *, now: float) -> Unavailable:
    """Return the error of a model whose load failed."""
    msg = f"'{model_id}' failed to load: {failure.reason}"
    return Unavailable(msg, reason="failed", retry_after_s=max(failure.retry_at - now, 1.0))


def not_ready(model_id: ModelId, refused: Refused | None) -> Unavailable:
    """Return the error of a model that is not ready in time; `refused`: it has no instance."""
    if refused is None:
        msg = f"'{model_id}' is still loading"
        return Unavailable(msg, reason="loading", retry_after_s=RETRY_S)
    msg = f"no instance can take '{model_id}': {refused}"
    reason = NO_ROOM if refused.may_pass else _lasting(refused)
    return Unavailable(msg, reason=reason, retry_after_s=RETRY_S)


def _lasting(refused: Refused) -> str:
    return "does_not_fit" if refused.need_text else "no_instance"
