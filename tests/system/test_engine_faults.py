"""What is done when a llama-server fails, and how everybody learns why."""

from collections.abc import Iterator

import pytest

from tests.lab import freezer, memory_limit
from tests.lab.hosts import Lab
from tests.lab.poll import eventually_sync
from tests.system.conftest import InstalledRoot
from tests.system.fault_host import (
    DEADLINE_S,
    WEDGE_AFTER_S,
    FaultHost,
    make_fault_host,
    only_the_victim_suffers,
)
from tests.system.gpu_hosts import BootGpuHost, agent_lines, llama_lines, pids, place_of
from tests.system.mesh import llama_servers, llama_unit

STUCK_DEADLINE_S = 60  # the watchdog, two signals, and a restart that waits for what is left
LONG_PROMPT = "word " * 700  # within the context, and more than the victim has read before


@pytest.fixture(scope="module")
def host(lab: Lab, installed_root: InstalledRoot, boot_gpu_host: BootGpuHost) -> FaultHost:
    return make_fault_host(lab, installed_root, boot_gpu_host)


@pytest.fixture
def faults(host: FaultHost) -> Iterator[FaultHost]:
    """Return the host with both models ready; the bystander must not be touched."""
    with only_the_victim_suffers(host) as faults:
        yield faults


def test_a_killed_llama_server_is_back_and_tells_why_it_was_away(faults: FaultHost) -> None:
    victim = faults.victim_pid
    faults.box.host.run("kill", "-9", str(victim))
    faults.wait_for("SIGKILL")
    assert faults.mesh.chat("victim").says == "here is the victim"
    assert faults.victim_pid != victim
    assert faults.logged("was killed by SIGKILL")


def test_a_stopped_llama_server_is_restarted(faults: FaultHost) -> None:
    victim = faults.victim_pid
    faults.box.host.run("kill", "-STOP", str(victim))
    eventually_sync(
        lambda: victim not in llama_servers(faults.box.host),
        what="it is gone",
        deadline_s=DEADLINE_S,
    )
    assert faults.mesh.chat("victim").says == "here is the victim"
    # It does not answer /health, or /slots if it had just been in use.
    faults.wait_for("answer")
    assert any("Watchdog" in line for line in llama_lines(faults.box.host, "gpu0"))
    assert any("gpu0" in line and "answer" in line for line in agent_lines(faults.box.host))


def test_a_wedged_llama_server_is_restarted(faults: FaultHost) -> None:
    lost = faults.ask_agent("wedged")
    assert lost.status == 502, lost.text
    faults.wait_for("is wedged: busy for")
    assert faults.logged("is wedged: busy for")
    faults.mesh.wait_for_state("gpu0", "ready")  # by itself
    assert place_of(faults.mesh, "wedged") == "gpu0"


def test_a_prompt_of_a_minute_is_not_taken_for_a_wedge(faults: FaultHost) -> None:
    begun = faults.box.host.run("cat", "/proc/uptime").stdout
    answered = faults.ask_agent("slow")
    ended = faults.box.host.run("cat", "/proc/uptime").stdout
    assert answered.status == 200, answered.text
    assert "done" in answered.text
    # It took many times what is allowed without any movement.
    assert float(ended.split()[0]) - float(begun.split()[0]) > max(60, 4 * WEDGE_AFTER_S)
    assert faults.box.host.show(llama_unit("gpu0"), "NRestarts") == "0"


def test_a_llama_server_that_the_kernel_ends_for_want_of_memory(faults: FaultHost) -> None:
    if reason := memory_limit.why_not():
        pytest.skip(reason)
    with memory_limit.short_of_memory(faults.victim_pid_outside, 64 << 10):
        faults.ask_agent("victim", messages=[{"role": "user", "content": LONG_PROMPT}])
        faults.wait_for("out of memory: the kernel ended it")
    assert faults.logged("out of memory: the kernel ended it")
    assert faults.mesh.chat("victim").says == "here is the victim"


def test_a_model_for_which_the_gpu_has_no_memory_after_all(faults: FaultHost) -> None:
    refused = faults.ask_agent("greedy")
    assert refused.status == 503
    assert "out of GPU memory" in refused.text
    faults.wait_for("out of GPU memory")
    assert faults.logged("out of GPU memory")
    # It is left alone for a while, and others get its place.
    again = faults.ask_agent("greedy")
    assert again.status == 503
    assert "retry-after" in again.headers
    assert faults.mesh.chat("victim").says == "here is the victim"


def test_processes_that_cannot_be_killed_are_stuck_until_they_are_gone(faults: FaultHost) -> None:
    if reason := freezer.why_not():
        pytest.skip(reason)
    mesh, victim = faults.mesh, faults.victim_pid
    with freezer.frozen(faults.victim_pid_outside):
        mesh.wait_for_state("gpu0", "stuck", deadline_s=STUCK_DEADLINE_S)
        faults.wait_for(f"cannot be killed: {victim}")
        assert victim in llama_servers(faults.box.host)
        refused = faults.ask_agent("spare")
        assert refused.status == 503
        assert "stuck" in refused.text
        assert mesh.chat("bystander").says == "here is the bystander"
        assert list(pids(mesh)) == ["gpu1"]
    eventually_sync(lambda: victim not in llama_servers(faults.box.host), what="it is gone at last")
    assert faults.logged("cannot be killed")
    mesh.wait_until_usable("victim")
    assert mesh.chat("victim").says == "here is the victim"
