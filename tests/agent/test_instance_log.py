"""What is logged of an instance, and which changes are an event for operators."""

import logging

import pytest

from rolemesh.agent.instance import Instance, InstanceState
from rolemesh.agent.instance_log import log_change
from rolemesh.names import InstanceName, ModelId
from rolemesh.runtime.journal import EVENT, FIELDS
from rolemesh.runtime.operator_events import OperatorEvent


def instance(state: str, reason: str = "") -> Instance:
    name, model_id = InstanceName("gpu0"), ModelId("qwen")
    return Instance(name=name, state=InstanceState(state), model_id=model_id, reason=reason)


@pytest.mark.parametrize(
    ("before", "after", "level", "event"),
    [
        ("stopped", "starting", logging.DEBUG, None),
        ("starting", "loading", logging.INFO, None),
        ("loading", "ready", logging.INFO, None),
        ("stopping", "stopped", logging.INFO, None),
        ("loading", "failed", logging.WARNING, OperatorEvent.MODEL_FAILED),
        ("ready", "loading", logging.WARNING, OperatorEvent.INSTANCE_CRASHED),
        ("ready", "starting", logging.WARNING, OperatorEvent.INSTANCE_CRASHED),
    ],
)
def test_a_change_is_logged_as_loud_as_it_matters(
    caplog: pytest.LogCaptureFixture,
    before: str,
    after: str,
    level: int,
    event: OperatorEvent | None,
) -> None:
    caplog.set_level(logging.DEBUG)
    log_change(instance(before), instance(after, "no room"))
    (record,) = caplog.records
    assert record.getMessage() == f"gpu0: {before} -> {after} (qwen): no room"
    assert record.levelno == level
    assert getattr(record, EVENT, None) is event
    assert getattr(record, FIELDS) == {"instance": "gpu0", "model_id": "qwen"}
