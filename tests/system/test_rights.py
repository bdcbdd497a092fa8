"""What the agent's user may ask of systemd, and everything that it may not."""

from collections.abc import Iterator, Sequence

import pytest

from tests.lab.host import Host
from tests.lab.poll import eventually_sync
from tests.system.mesh import GATEWAY_UNIT, Mesh, llama_unit

AGENT_USER = "_rolemesh-agent"
TEMPLATE = "/usr/lib/systemd/system/rolemesh-llama@.service"
UNIT = llama_unit("gpu0")
MANAGER = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
)
REFUSALS = ("Access denied", "Interactive authentication required", "Permission denied")

REFUSED_OF_A_LLAMA_UNIT = [
    ("systemctl", "kill", UNIT),
    ("systemctl", "set-property", "--runtime", UNIT, "CPUWeight=10"),
    ("systemctl", "reload", UNIT),
    ("systemctl", "clean", "--what=runtime", UNIT),
    ("systemctl", "freeze", UNIT),
    ("systemctl", "bind", UNIT, "/etc", "/mnt"),
    ("systemctl", "enable", UNIT),
    ("systemctl", "mask", UNIT),
    ("systemctl", "daemon-reload"),
    ("systemctl", "daemon-reexec"),
    ("systemctl", "set-environment", "LD_PRELOAD=/tmp/x.so"),
    ("systemctl", "poweroff"),
]
OTHER_UNITS = [
    GATEWAY_UNIT,
    "rolemesh-node-agent.service",
    "rolemesh-llama@gpu0x.service",
    "rolemesh-llama@gpu00.service",
    "rolemesh-llama@gpu1234.service",
    "rolemesh-llama@gpu0-.service",
    "rolemesh-llama@tpu0.service",
    "rolemesh-llama.target",
    "dbus.service",
]


@pytest.fixture(scope="module", params=["trixie", "bookworm"])
def suite(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def as_agent(host: Host, *command: str) -> str:
    """Run a command as the agent's user; return "" when it was done, else what it said."""
    words = (*command, "--no-ask-password") if command[0] == "systemctl" else command
    done = host.run(*words, user=AGENT_USER, check=False)
    return "" if done.returncode == 0 else done.stderr or f"status {done.returncode}"


def assert_refused(host: Host, command: Sequence[str]) -> None:
    said = as_agent(host, *command)
    assert any(refusal in said for refusal in REFUSALS), (command, said)


def transient_unit(unit: str, command: str) -> tuple[str, ...]:
    """Return what asks systemd to run a command of our own under the name of a unit."""
    signature = "ssa(sv)a(sa(sv))"
    start = ("1", "ExecStart", "a(sasb)", "1", "/bin/sh", "3", "/bin/sh", "-c", command, "false")
    call = ("busctl", "call", "--", *MANAGER, "StartTransientUnit", signature)
    return (*call, unit, "replace", *start, "0")


@pytest.fixture(scope="module")
def node(mesh: Mesh) -> Host:
    return mesh.node


@pytest.fixture
def no_template(node: Host) -> Iterator[None]:
    """Take the template file away for a while."""
    node.run("systemctl", "stop", "rolemesh-llama@*")
    node.run("mv", TEMPLATE, "/root/template")
    node.run("systemctl", "daemon-reload")
    yield
    node.run("mv", "/root/template", TEMPLATE)
    node.run("systemctl", "daemon-reload")


def test_the_agent_may_start_stop_restart_and_reset_instances(node: Host) -> None:
    for unit in (UNIT, llama_unit("cpu0")):
        for verb in ("start", "restart", "reset-failed", "stop", "start"):
            assert as_agent(node, "systemctl", verb, unit) == ""


@pytest.mark.parametrize("command", REFUSED_OF_A_LLAMA_UNIT, ids=lambda each: each[1])
def test_the_agent_may_ask_nothing_else(node: Host, command: Sequence[str]) -> None:
    node.run("systemctl", "start", UNIT)
    assert_refused(node, command)


@pytest.mark.parametrize("unit", OTHER_UNITS)
def test_the_agent_may_not_touch_other_units(node: Host, unit: str) -> None:
    for method in ("StartUnit", "StopUnit", "RestartUnit"):
        assert_refused(node, ("busctl", "call", *MANAGER, method, "ss", unit, "replace"))


def test_other_users_may_not_touch_instances(node: Host) -> None:
    for user in ("nobody", "_rolemesh-gateway", "_rolemesh-llama"):
        done = node.run("systemctl", "--no-ask-password", "stop", UNIT, user=user, check=False)
        assert any(refusal in done.stderr for refusal in REFUSALS), done.stderr


def test_a_command_of_its_own_is_not_run_under_the_name_of_an_instance(node: Host) -> None:
    said = as_agent(node, *transient_unit(UNIT, "touch /escalated"))
    assert said
    said = as_agent(node, *transient_unit(llama_unit("gpu7"), "touch /escalated"))
    assert said
    assert node.run("test", "-e", "/escalated", check=False).returncode != 0


def test_without_the_template_nothing_is_started_at_all(node: Host, no_template: None) -> None:
    for unit in (UNIT, llama_unit("gpu7")):
        assert_refused(node, transient_unit(unit, "touch /escalated"))
    assert node.run("test", "-e", "/escalated", check=False).returncode != 0
    # Only the rule is in the way: root's same call runs the command.
    node.run(*transient_unit(llama_unit("gpu7"), "touch /escalated"))
    eventually_sync(
        lambda: node.run("test", "-e", "/escalated", check=False).returncode == 0,
        what="the command of a transient unit has run",
    )
