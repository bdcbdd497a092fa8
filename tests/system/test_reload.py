"""systemctl reload: refused whole when something is wrong, without a gap when nothing is."""

import pytest

from tests.system.hammer import hammering
from tests.system.mesh import AGENT, GATEWAY_PORT, GATEWAY_UNIT, Mesh, drop_in

RELOAD_TIMEOUT_S = 20
STREAM_TOKENS = 12_000  # some seconds of it


@pytest.fixture(scope="module", params=["trixie", "bookworm"])
def suite(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_a_bad_drop_in_makes_the_reload_fail_and_the_old_one_serves(mesh: Mesh) -> None:
    mesh.wait_until_usable("coder")
    hosts = (("gateway", mesh.gateway, GATEWAY_UNIT), ("node", mesh.node, AGENT))
    for program, host, unit in hosts:
        pid = host.show(unit, "MainPID")
        bad = drop_in(host, program, "70-bad.yaml", "version: 1\nlisten: {prt: 1}\n")
        done = host.run("systemctl", "reload", unit, check=False, timeout_s=RELOAD_TIMEOUT_S)
        assert done.returncode != 0
        assert f"{bad}:2: listen.prt: unknown key" in host.journal_text(f"--unit={unit}")
        assert host.show(unit, "ActiveState") == "active"
        assert host.show(unit, "MainPID") == pid
        assert mesh.chat("coder").says == "the code of the coder"
        host.run("rm", bad)
        host.run("systemctl", "reload", unit, timeout_s=RELOAD_TIMEOUT_S)
        assert host.show(unit, "MainPID") == pid


def test_a_good_drop_in_counts_from_the_reload_on(mesh: Mesh) -> None:
    alias = {"models": {"author": {"type": "discovered", "role": "coder"}}}
    drop_in(mesh.gateway, "gateway", "70-author.yaml", alias)
    assert mesh.chat("author").status == 404
    with hammering(mesh.lab, mesh.gateway, GATEWAY_PORT) as hammered:
        hammered.wait_for_more()
        mesh.gateway.run("systemctl", "reload", GATEWAY_UNIT, timeout_s=RELOAD_TIMEOUT_S)
        assert mesh.chat("author").says == "the code of the coder"
        hammered.wait_for_more()
    assert (hammered.refused, hammered.broken, hammered.surprises) == (0, 0, [])


def test_a_stream_goes_on_to_its_end_over_a_good_reload(mesh: Mesh) -> None:
    mesh.wait_until_usable("poet")
    connection = mesh.connect()
    reply = connection.stream("poet", max_tokens=STREAM_TOKENS)
    drop_in(mesh.gateway, "gateway", "75-bard.yaml", {"models": {"bard": {"type": "discovered"}}})
    mesh.gateway.run("systemctl", "reload", GATEWAY_UNIT, timeout_s=RELOAD_TIMEOUT_S)
    assert mesh.chat("bard").status == 503  # the reload counts, and nobody is a bard
    assert mesh.instances()["cpu0"]["requests"] == 1  # the stream is in its middle still
    assert reply.read().endswith(b"data: [DONE]\n\n")
    connection.close()
