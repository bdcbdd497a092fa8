"""What a node tells a gateway."""

import pytest

from rolemesh.jsonread import JsonError
from rolemesh.names import InstanceName, ModelId, NodeId, Role
from rolemesh.wire import InstanceReport, ModelReport, NodeReport

MODEL = {"model_id": "m", "roles": ["coder"]}


def test_a_report_is_shown_without_its_key() -> None:
    report = NodeReport(
        node_id=NodeId("box"), base_url="http://127.0.0.1:1", api_key="s3cret", inventory={}
    )
    assert "s3cret" not in repr(report)
    assert report.to_json()["api_key"] == "s3cret"


def test_a_model_may_tell_its_ready_instances_apart() -> None:
    gpu0 = InstanceReport(name=InstanceName("gpu0"), slots=2, slots_free=1)
    report = ModelReport(model_id=ModelId("m"), roles=(Role("coder"),), instances=(gpu0,))
    assert report.to_json()["instances"] == [{"name": "gpu0", "slots": 2, "slots_free": 1}]
    assert ModelReport.from_json(report.to_json()) == report
    assert report.without_free_slots().instances == (
        InstanceReport(name=InstanceName("gpu0"), slots=2),
    )


def test_a_node_need_not_tell_its_instances_apart() -> None:
    report = ModelReport.from_json(MODEL)
    assert report.instances == ()
    assert "instances" not in report.to_json()


@pytest.mark.parametrize("instances", [{"name": "gpu0"}, [{"slots": 2}], ["gpu0"]])
def test_instances_that_are_none_are_refused(instances: object) -> None:
    with pytest.raises(JsonError):
        ModelReport.from_json({**MODEL, "instances": instances})
