"""What is done when files, disks, the agent or a GPU fail, and how everybody learns why."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.host import Host
from tests.lab.hosts import Lab
from tests.lab.poll import eventually_sync
from tests.system.conftest import InstalledRoot
from tests.system.fault_host import (
    DEADLINE_S,
    FaultHost,
    make_fault_host,
    only_the_victim_suffers,
)
from tests.system.gpu_hosts import (
    OWN_MODELS,
    BootGpuHost,
    Clients,
    agent_lines,
    loads_of,
    pids,
    shown_nodes,
    words_of,
)
from tests.system.mesh import AGENT, Mesh, llama_server_of, llama_servers, llama_unit

SPARE = f"{OWN_MODELS}/spare-copy.gguf"
VICTIM = f"{OWN_MODELS}/victim-copy.gguf"
STATE = "/var/lib/rolemesh/agent"


@pytest.fixture(scope="module")
def host(lab: Lab, installed_root: InstalledRoot, boot_gpu_host: BootGpuHost) -> FaultHost:
    return make_fault_host(lab, installed_root, boot_gpu_host)


@pytest.fixture
def faults(host: FaultHost) -> Iterator[FaultHost]:
    """Return the host with both models ready; the bystander must not be touched."""
    with only_the_victim_suffers(host) as faults:
        yield faults


def missing(mesh: Mesh) -> str:
    """Return what the agent says is missing on its node."""
    return "\n".join(mesh.ask_node("GET", "/v1/node").json["missing"])


@contextmanager
def changed_file(host: Host, path: str, *change: str) -> Iterator[None]:
    """Do something to a file, and put it back as it was at the end."""
    host.run("cp", "-a", path, f"{path}.kept")
    host.run(*change)
    try:
        yield
    finally:
        host.run("mv", f"{path}.kept", path)


def wait_until_told(faults: FaultHost, *words: str) -> None:
    """Wait until the agent, its journal and rolemeshctl say what keeps a model from loading."""

    def told() -> bool:
        sources = (
            missing(faults.mesh),
            "\n".join(agent_lines(faults.box.host)),
            shown_nodes(faults.mesh),
        )
        return all(word in source for word in words for source in sources)

    eventually_sync(told, what=f"told: {words}", deadline_s=DEADLINE_S)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("dd", "if=/dev/zero", f"of={SPARE}", "bs=64", "count=1", "conv=notrunc"), "not a GGUF"),
        (("truncate", "--size=100K", SPARE), "is incomplete"),
        (("rm", SPARE), "does not exist"),
    ],
    ids=["overwritten", "cut-off", "deleted"],
)
def test_a_model_file_that_is_broken_is_refused_until_it_is_mended(
    faults: FaultHost, change: tuple[str, ...], words: str
) -> None:
    before = pids(faults.mesh)
    with changed_file(faults.box.host, SPARE, *change):
        wait_until_told(faults, SPARE, words)
        refused = faults.mesh.chat("spare")
        assert refused.status == 503
        assert SPARE in refused.text
        assert words in refused.text
        assert pids(faults.mesh) == before
    faults.mesh.wait_until_usable("spare")
    assert faults.mesh.chat("spare").says == "here is the spare"


def test_a_file_that_is_deleted_under_a_loaded_model_ends_nothing(faults: FaultHost) -> None:
    host, pid = faults.box.host, faults.victim_pid
    with changed_file(host, VICTIM, "rm", VICTIM):
        wait_until_told(faults, VICTIM, "does not exist")
        assert faults.mesh.chat("victim").says == "here is the victim"
        assert faults.victim_pid == pid
        host.run("kill", "-9", str(pid))  # and now it can not come back
        eventually_sync(
            lambda: VICTIM in words_of(faults.mesh, "gpu0"),
            what="the instance says why",
            deadline_s=DEADLINE_S,
        )
        assert host.show(llama_unit("gpu0"), "ActiveState") == "failed"
        assert int(host.show(llama_unit("gpu0"), "NRestarts")) <= 1
    faults.mesh.wait_until_usable("victim")
    assert faults.mesh.chat("victim").says == "here is the victim"


@contextmanager
def tiny_disk(host: Host, folder: str) -> Iterator[None]:
    """Have a folder, with all that is in it, on a disk that is full; the agent starts anew."""
    owner = host.run("stat", "--format=uid=%u,gid=%g,mode=%a", folder).stdout.strip()
    host.run("systemctl", "stop", AGENT)
    host.run("cp", "-a", folder, "/var/tmp/kept")
    host.run("mount", "-t", "tmpfs", "-o", f"size=256k,{owner}", "tmpfs", folder)
    host.run("cp", "-a", "/var/tmp/kept/.", folder)
    host.run("sh", "-c", f"dd if=/dev/zero of={folder}/filler bs=4k 2>/dev/null; true")
    host.run("systemctl", "start", AGENT)
    try:
        yield
    finally:
        host.run("systemctl", "stop", AGENT)
        host.run("umount", folder)
        host.run("rm", "-r", "/var/tmp/kept")
        host.run("systemctl", "start", AGENT)


def test_with_a_full_disk_serving_goes_on_and_what_is_not_saved_is_told(
    faults: FaultHost,
) -> None:
    mesh, host, before = faults.mesh, faults.box.host, pids(faults.mesh)
    with tiny_disk(host, STATE):
        mesh.wait_for_state("gpu0", "ready")
        host.run("rolemeshctl", "unpin", "gpu1")  # something to be kept
        assert mesh.chat("victim").says == "here is the victim"
        wait_until_told(faults, "No space left on device")
        status = host.show(AGENT, "StatusText")
        assert "No space left on device" in status
        assert pids(mesh) == before
    host.run("rolemeshctl", "pin", "gpu1")


@pytest.fixture
def closed_gate(host: FaultHost) -> Iterator[None]:
    """Have loads of held models wait, at the latest until the end of the test."""
    host.box.close_gate()
    yield
    host.box.open_gate()


@pytest.mark.usefixtures("closed_gate")
def test_an_agent_that_is_killed_during_a_load_joins_it(faults: FaultHost) -> None:
    mesh, host = faults.mesh, faults.box.host
    before = loads_of(host, "held-gguf")
    with Clients(mesh) as clients:
        first = clients.chat("held")
        mesh.wait_for_state("gpu0", "loading")
        loading = eventually_sync(lambda: server_on(host, "gpu0"), what="the load has begun")
        victim = host.show(AGENT, "MainPID")
        host.run("kill", "-9", victim)
        eventually_sync(
            lambda: (
                host.show(AGENT, "ActiveState") == "active"
                and host.show(AGENT, "MainPID") != victim
            ),
            what="a new agent",
            deadline_s=DEADLINE_S,
        )
        mesh.wait_for_state("gpu0", "loading")
        assert mesh.instances()["gpu0"]["model_id"] == "held-gguf"
        mesh.wait_until_usable("held")
        second = clients.chat("held")
        faults.box.open_gate()
        assert second.result().says == "here is the held"
        # Nothing of the first one's answer had been sent: the gateway has tried again.
        assert first.result().says == "here is the held"
    assert llama_server_of(host, "gpu0") == loading
    assert loads_of(host, "held-gguf") == before + 1


def server_on(host: Host, instance: str) -> int | None:
    """Return the pid of what stands for an instance's llama-server, None if there is none."""
    units = llama_servers(host).items()
    return next((pid for pid, unit in units if unit == llama_unit(instance)), None)


def test_a_lost_gpu_takes_only_its_own_instances_out(faults: FaultHost) -> None:
    box, mesh = faults.box, faults.mesh
    box.gpus.lose(box.uuids[0])
    try:
        faults.wait_for("gpu0 is lost")
        eventually_sync(
            lambda: "gpu0" not in " ".join(llama_servers(box.host).values()),
            what="its llama-server is ended",
            deadline_s=DEADLINE_S,
        )
        assert mesh.chat("bystander").says == "here is the bystander"
        refused = faults.ask_agent("victim")
        assert refused.status == 503
        assert "gpu0 is lost" in refused.text
        assert any("gpu0 is lost" in line for line in agent_lines(box.host))
    finally:
        box.gpus.recover(box.uuids[0])
    mesh.wait_until_usable("victim")
    assert mesh.chat("victim").says == "here is the victim"
