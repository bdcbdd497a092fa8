"""The power of a host: what comes back by itself."""

from tests.lab.poll import eventually_sync
from tests.system.mesh import Mesh


def test_a_node_is_back_by_itself_after_a_power_cut(mesh: Mesh) -> None:
    mesh.wait_until_usable("coder")
    assert mesh.chat("coder").says == "the code of the coder"
    mesh.node.kill_power()
    mesh.node.boot()
    mesh.wait_until_usable("coder")
    assert mesh.chat("coder").says == "the code of the coder"


def test_a_gateway_is_back_by_itself_after_a_power_cut(mesh: Mesh) -> None:
    mesh.gateway.kill_power()
    mesh.gateway.boot()
    eventually_sync(lambda: mesh.ask("GET", "/health").status == 200, what="the gateway answers")
    mesh.wait_until_usable("coder")
    assert mesh.chat("coder").says == "the code of the coder"
