import json

from tests.ctl.conftest import Ctl
from tests.fakes.operator_api import OperatorApi


def test_a_node_gets_requests_again(ask: Ctl, gateway: OperatorApi) -> None:
    reply = {"node_id": "gpubox", "drained": False}
    gateway.replies["POST nodes/gpubox/undrain"] = reply
    assert ask("undrain", "gpubox").out == "gpubox gets requests again\n"
    assert json.loads(ask("undrain", "gpubox", "--json").out) == reply
