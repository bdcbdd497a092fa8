"""What a node tells a gateway."""

from rolemesh.names import NodeId
from rolemesh.wire import NodeReport


def test_a_report_is_shown_without_its_key() -> None:
    report = NodeReport(
        node_id=NodeId("box"), base_url="http://127.0.0.1:1", api_key="s3cret", inventory={}
    )
    assert "s3cret" not in repr(report)
    assert report.to_json()["api_key"] == "s3cret"
