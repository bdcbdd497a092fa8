"""A host on which things go wrong: two GPUs, a victim on one and a bystander on the other."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.lab.hosts import Lab
from tests.lab.poll import eventually_sync
from tests.system.conftest import InstalledRoot
from tests.system.gpu_hosts import (
    LOAD_DEADLINE_S,
    BootGpuHost,
    GpuHost,
    agent_lines,
    llama_lines,
    memory_rules,
    own_model,
    pids,
    shown_nodes,
    sized_model,
    words_of,
)
from tests.system.mesh import AGENT_PORT, Mesh, Reply, llama_server_of, start_gateway

LARGE_MIB = 18_000
WEDGE_AFTER_S = 2
DEADLINE_S = LOAD_DEADLINE_S
REPLY_TIMEOUT_S = 150  # the slow one answers after more than a minute
# Not more than a model of 350 KiB needs; what llama-server would take anyway is in wedge_after_s.
QUICK_BATCH = {"batch_size": 32}
# The units of these hosts: what hangs is found soon, and what cannot be ended is given up soon.
IMPATIENCE = "[Service]\nWatchdogSec=4\nTimeoutStopSec=3\nTimeoutAbortSec=3\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultHost:
    """The host, the mesh it belongs to, and its models."""

    box: GpuHost
    mesh: Mesh
    victim: Mapping[str, Any]

    @property
    def victim_pid(self) -> int:
        """The pid of the victim's llama-server on its host."""
        return llama_server_of(self.box.host, "gpu0")

    @property
    def victim_pid_outside(self) -> int:
        """The pid of the victim's llama-server on this machine."""
        return self.box.host.pid_outside(self.victim_pid)

    def ask_agent(self, role: str, **fields: Any) -> Reply:
        """Chat without a gateway, which would try again; the whole reply."""
        connection = self.mesh.connect(self.box.host, AGENT_PORT, timeout_s=REPLY_TIMEOUT_S)
        messages = [{"role": "user", "content": "go"}]
        body = {"model": f"{role}-gguf", "messages": messages, **fields}
        try:
            return connection.ask("POST", "/v1/chat/completions", body)
        finally:
            connection.close()

    def wait_for(self, text: str, *, instance: str = "gpu0") -> None:
        """Wait until the agent says something of an instance, and gateway and rolemeshctl too."""
        eventually_sync(
            lambda: text in words_of(self.mesh, instance),
            what=f"{instance}: {text}",
            deadline_s=DEADLINE_S,
        )

        def passed_on() -> bool:
            return text in shown_nodes(self.mesh)

        eventually_sync(passed_on, what=f"rolemeshctl nodes: {text}", deadline_s=DEADLINE_S)

    def logged(self, text: str, *, instance: str = "gpu0") -> bool:
        """Tell whether the journal has it from the instance's unit, and from the agent."""
        unit = any(text in line for line in llama_lines(self.box.host, instance))
        agent = any(text in line and instance in line for line in agent_lines(self.box.host))
        return unit and agent


def make_fault_host(
    lab: Lab, installed_root: InstalledRoot, boot_gpu_host: BootGpuHost
) -> FaultHost:
    """Boot a gateway and the host, and start their daemons."""
    (gateway,) = lab.boot(["gw"], root=installed_root("trixie"))
    start_gateway(gateway)
    plain = [
        sized_model(role, LARGE_MIB, **QUICK_BATCH)
        for role in ("victim", "bystander", "wedged", "slow", "greedy", "held", "spare")
    ]
    rules = memory_rules(plain) | {"victim-copy.gguf": LARGE_MIB, "spare-copy.gguf": LARGE_MIB}
    box = boot_gpu_host("box", gpus=2, memory=rules)
    models = [
        own_model(box.host, each, role) if role in {"victim", "spare"} else each
        for each in plain
        for role in each["roles"]
    ]
    box.host.put("/etc/systemd/system/rolemesh-llama@.service.d/impatience.conf", IMPATIENCE)
    box.run_agent(
        gateway,
        {
            "models": models,
            "instances": {
                "gpu0": {"model": "victim-gguf"},
                "gpu1": {"model": "bystander-gguf", "pinned": True},
            },
            "policy": {"wedge_after_s": WEDGE_AFTER_S, "switch_after_s": 1, "min_resident_s": 0},
        },
    )
    mesh = Mesh(lab=lab, gateway=gateway, node=box.host)
    return FaultHost(box=box, mesh=mesh, victim=models[0])


@contextmanager
def only_the_victim_suffers(faults: FaultHost) -> Iterator[FaultHost]:
    """Begin with both models ready; whatever happens then, the bystander goes on untouched."""
    mesh = faults.mesh
    mesh.wait_until_usable("victim")
    assert mesh.chat("victim").says == "here is the victim"
    assert mesh.chat("bystander").says == "here is the bystander"
    before = pids(mesh)["gpu1"]
    yield faults
    assert mesh.chat("bystander").says == "here is the bystander"
    assert pids(mesh)["gpu1"] == before
