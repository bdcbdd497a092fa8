"""What is logged of an instance, and which changes are an event for operators."""

import logging
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from rolemesh.agent.instance import (
    DeviceLost,
    Drained,
    Instance,
    InstanceEvent,
    InstanceState,
    LoadWanted,
    RestartWanted,
    UnloadWanted,
)
from rolemesh.agent.instance_log import log_change, log_wait
from rolemesh.agent.managed_instance import Failed
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
        ("ready", "draining", logging.INFO, None),
        ("stopping", "stopped", logging.INFO, None),
        ("stopping", "stuck", logging.ERROR, OperatorEvent.INSTANCE_STUCK),
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
    log_change(instance(before), instance(after, "no room"), Drained(), None)
    (record,) = caplog.records
    assert record.getMessage() == f"gpu0: {before} -> {after} (qwen): no room"
    assert record.levelno == level
    assert getattr(record, EVENT, None) is event
    assert getattr(record, FIELDS) == {"instance": "gpu0", "model_id": "qwen"}


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (UnloadWanted(why="drained by an operator"), "drained by an operator"),
        (LoadWanted(model_id=ModelId("other")), "makes room for other"),
        (RestartWanted(), "its settings changed"),
    ],
)
def test_why_an_instance_leaves_is_logged(
    caplog: pytest.LogCaptureFixture, event: InstanceEvent, why: str
) -> None:
    caplog.set_level(logging.INFO)
    leaving = replace(instance("draining"), next_model_id=ModelId("other"))
    log_change(instance("ready"), leaving, event, None)
    assert caplog.messages == [f"gpu0: ready -> draining (qwen): {why}"]


def test_a_lost_card_is_why_its_instance_is_stopped(caplog: pytest.LogCaptureFixture) -> None:
    lost = DeviceLost(reason="gpu0 is lost: GPU is lost")
    log_change(instance("ready"), instance("stopping"), lost, None)
    assert caplog.messages == ["gpu0: ready -> stopping (qwen): gpu0 is lost: GPU is lost"]


def test_why_an_instance_crashed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    failed = Failed("llama-server was killed by SIGKILL", datetime.now(UTC))
    log_change(instance("ready"), instance("loading"), Drained(), failed)
    assert caplog.messages == ["gpu0: ready -> loading (qwen): llama-server was killed by SIGKILL"]


def test_a_wait_is_logged_at_its_beginning_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    texts = ["", "waits for memory: 1 GiB free", "waits for memory: 2 GiB free", ""]
    for before, after in pairwise(texts):
        log_wait(InstanceName("gpu0"), before=before, after=after)
    assert caplog.messages == [
        "gpu0: waits for memory: 1 GiB free",
        "gpu0: goes on, its wait is over",
    ]
