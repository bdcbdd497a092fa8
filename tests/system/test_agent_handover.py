"""The agent's program is replaced and hands over, while its models answer."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPException, HTTPResponse

import pytest

from tests.lab.host import Host, HostError
from tests.lab.poll import eventually_sync
from tests.system.hammer import hammering
from tests.system.mesh import AGENT, AGENT_PORT, Mesh, drop_in, llama_servers

DRAIN_S = 3
MARGIN_S = 2
GAP_S = 2  # two llama-servers compute meanwhile, with all the cores there are
LONG_TOKENS = 5000  # some seconds of it
PACKAGE = "/usr/lib/python3/dist-packages/rolemesh"


@pytest.fixture(scope="module", params=["trixie", "bookworm"])
def suite(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def restarted(mesh: Mesh) -> None:
    """Begin with one process."""
    drop_in(mesh.node, "node", "60-drain.yaml", {"limits": {"drain_s": DRAIN_S}})
    mesh.node.run("systemctl", "restart", AGENT)
    for alias in ("planner", "poet"):
        mesh.wait_until_usable(alias)
        mesh.chat(alias, max_tokens=1)


def hand_over(host: Host, version: str) -> int:
    """Upgrade and reload, and return the pid of the new main process."""
    before = main_pid(host)
    edit = f's/^\\(__version__.*=\\).*/\\1 "{version}"/'
    host.run("sed", "-i", edit, f"{PACKAGE}/__init__.py")
    host.run("systemctl", "reload", AGENT)
    after = main_pid(host)
    assert after != before
    return after


def main_pid(host: Host) -> int:
    return int(host.show(AGENT, "MainPID"))


def processes(host: Host) -> set[int]:
    """Return the pids of the unit."""
    group = f"/sys/fs/cgroup{host.show(AGENT, 'ControlGroup')}/cgroup.procs"
    return {int(line) for line in host.run("cat", group, check=False).stdout.split()}


@contextmanager
def stream(mesh: Mesh, **fields: int) -> Iterator[HTTPResponse]:
    """Have an answer under way of which no more than the first event was read."""
    with (
        closing(mesh.connect()) as connection,
        closing(connection.stream("poet", **fields)) as reply,
    ):
        yield reply


@contextmanager
def chatting(mesh: Mesh) -> Iterator[list[float]]:
    """Ask the planner again and again, through the gateway; gives how long each answer took.

    How long that is depends on who else computes; that each is right does not.
    """
    took: list[float] = []
    stop, failures = threading.Event(), []

    def chat() -> None:
        mesh.lab.network.enter_client()
        while not stop.is_set():
            began = time.monotonic()
            try:
                assert mesh.chat("planner").says == "the plan of the planner"
            except (AssertionError, OSError, HTTPException) as err:
                failures.append(err)
                return
            took.append(time.monotonic() - began)

    thread = threading.Thread(target=chat)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join()
    assert failures == []


def some_more(took: list[float], count: int = 5) -> None:
    goal = len(took) + count
    eventually_sync(lambda: len(took) >= goal, what="more answers", deadline_s=30)


def instance(mesh: Mesh, name: str) -> dict[str, object]:
    return mesh.instances()[name]


def test_an_upgrade_stalls_nobody(mesh: Mesh) -> None:
    host = mesh.node
    first, servers = main_pid(host), llama_servers(host)
    with chatting(mesh) as took, hammering(mesh.lab, host, AGENT_PORT) as hammered:
        some_more(took)
        with stream(mesh, max_tokens=LONG_TOKENS) as reply:
            second = hand_over(host, "7.0.0")
            assert processes(host) == {first, second}
            assert instance(mesh, "cpu0")["slots_free"] == 0
            hammered.wait_for_more()
            some_more(took)
            assert reply.read().endswith(b"data: [DONE]\n\n")
    assert (hammered.refused, hammered.broken, hammered.surprises) == (0, 0, [])
    assert hammered.longest_s <= GAP_S
    assert mesh.ask_node("GET", "/v1/node").json["version"] == "7.0.0"
    eventually_sync(lambda: processes(host) == {second}, what="the old process ends")
    eventually_sync(lambda: instance(mesh, "cpu0")["slots_free"] == 1, what="its slot is free")
    assert llama_servers(host) == servers


def test_what_runs_in_the_old_process_is_not_unloaded(mesh: Mesh) -> None:
    host = mesh.node
    with stream(mesh) as reply:
        hand_over(host, "8.0.0")
        unloaded = mesh.ask_node("POST", "/v1/node/instances/cpu0/unload")
        assert unloaded.status == 202
        mesh.wait_for_state("cpu0", "draining")
        assert reply.readline()
        assert instance(mesh, "cpu0")["state"] == "draining"
    mesh.wait_for_state("cpu0", "stopped")
    mesh.chat("poet", max_tokens=1)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ("1i def main(:", "SyntaxError"),
        # When the old process has let go of everything.
        (
            "s/^            self._choices.read.*/            raise KeyError('late')/",
            "KeyError: 'late'",
        ),
    ],
)
def test_a_broken_program_fails_the_reload_and_the_old_one_serves_on(
    mesh: Mesh, edit: str, says: str
) -> None:
    host = mesh.node
    first, main = main_pid(host), f"{PACKAGE}/agent/main.py"
    host.run("cp", main, "/root/main.py")
    host.run("sed", "-i", edit, main)
    try:
        with stream(mesh) as reply, chatting(mesh) as took:
            with pytest.raises(HostError):
                hand_over(host, "9.0.0")
            some_more(took)
            assert reply.readline()
    finally:
        host.run("cp", "/root/main.py", main)
    assert says in host.journal_text(f"--unit={AGENT}", "--priority=err")
    assert processes(host) == {first}
    assert hand_over(host, "9.0.1") != first


def test_who_waits_for_a_model_gets_it_from_the_new_process(mesh: Mesh) -> None:
    assert mesh.ask_node("POST", "/v1/node/instances/gpu0/unload").status == 202
    mesh.wait_for_state("gpu0", "stopped")
    with ThreadPoolExecutor(1) as pool:

        def chat() -> str:
            mesh.lab.network.enter_client()
            return mesh.chat("planner").says

        answer = pool.submit(chat)
        eventually_sync(lambda: instance(mesh, "gpu0")["state"] != "stopped", what="it is loaded")
        hand_over(mesh.node, "9.5.0")
        assert answer.result() == "the plan of the planner"


def test_a_stop_ends_those_that_still_end_their_requests(mesh: Mesh) -> None:
    host = mesh.node
    with stream(mesh):
        hand_over(host, "10.0.0")
        hand_over(host, "11.0.0")
        assert len(processes(host)) == 3
        began = time.monotonic()
        host.run("systemctl", "restart", AGENT)
        assert time.monotonic() - began <= DRAIN_S + MARGIN_S
        assert len(processes(host)) == 1
    assert mesh.chat("planner").says == "the plan of the planner"
