"""What the nodes say that are only in the registry."""

from rolemesh.wire import NodeReport
from tests.bench.fleet import INSTANCES, SLOTS, node_report
from tests.bench.rolemesh import ALIAS


def test_a_node_has_eight_ready_models_of_one_role() -> None:
    report = NodeReport.from_json(node_report(3, 9000))
    assert report.node_id == "node-3"
    assert report.base_url == "http://127.0.0.1:9000"
    assert len({model.model_id for model in report.models}) == INSTANCES
    assert {model.roles for model in report.models} == {(ALIAS,)}
    assert {model.slots_free for model in report.models} == {SLOTS}
