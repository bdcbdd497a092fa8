"""Hosts with GPUs of their own, whose memory follows the llama-servers that run there.

What stands for llama-server on such a host is `STAND_IN`: by the name of the model file it is the
real one, one that waits before it loads, or a program that misbehaves.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import pynvml
import yaml

from tests.lab.host import Host
from tests.lab.llama_server import llama_server_seen_at
from tests.lab.nvml import FakeGpus, compiled_shim
from tests.lab.poll import eventually_sync
from tests.system.mesh import (
    AGENT,
    LLAMA_FOLDER,
    SEE_GPUS,
    Mesh,
    Reply,
    llama_unit,
    model,
    node_basics,
    start_agent,
)

_T = TypeVar("_T")

GPU_MIB = 24576
RELEASE_S = 2.0  # how long the driver keeps the memory of a process that has ended
LOAD_DEADLINE_S = 20
PROGRAM = "/usr/local/bin/llama-server"
GATE = "/srv/gate"
OWN_MODELS = Path("/srv/own")  # on the host itself, where tests may change them
_FAKE = "/usr/local/lib/llama_program.py"
_FAKE_SOURCE = Path(__file__).parents[1] / "fakes" / "llama_program.py"

STAND_IN = """\
#!/bin/sh
for word; do
    case $word in
        */held-*) read -r _ <{gate} ;;  # no other process: it would have the GPU, too
        */wedged-*) exec {fake} --fake wedged "$@" ;;
        */slow-*) exec {fake} --fake slow --fake-batches 42 --fake-batch-s 1.5 "$@" ;;
        */greedy-*)
            echo 'E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 17171.88 MiB on device 0:' \\
                'cudaMalloc failed: out of memory' >&2
            exit 1 ;;
    esac
done
exec {program} "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuHost:
    """A host and its GPUs, in order."""

    host: Host
    gpus: FakeGpus
    uuids: Sequence[str]

    def run_agent(self, gateway: Host, configuration: Mapping[str, Any]) -> None:
        """Start its agent, which has nothing in its one file but this and `node_basics`."""
        _, program = llama_server_seen_at(LLAMA_FOLDER)
        stand_in = STAND_IN.format(program=program, fake=_FAKE, gate=GATE)
        self.close_gate()
        self.host.put(PROGRAM, stand_in, mode=0o755)
        self.host.put(_FAKE, _FAKE_SOURCE.read_text(), mode=0o755)
        # Those who watch a llama-server look at its GPUs, too.
        self.host.put("/etc/systemd/system/rolemesh-llama@.service.d/gpus.conf", SEE_GPUS)
        start_agent(
            self.host,
            {**node_basics(gateway), "llama_server": {"path": PROGRAM}, **configuration},
        )

    def open_gate(self) -> None:
        """Let llama-servers of held models load, those that wait included."""
        self.host.run("sh", "-c", f"mv {GATE} {GATE}.old && echo >{GATE}")
        self.host.run("timeout", "0.5", "sh", "-c", f"echo >{GATE}.old", check=False)
        self.host.run("rm", f"{GATE}.old")

    def close_gate(self) -> None:
        """Have llama-servers of held models wait from now on: whoever opens the pipe to read."""
        self.host.run("sh", "-c", f"rm -f {GATE} && mkfifo --mode=644 {GATE}")


BootGpuHost = Callable[..., GpuHost]


def show_gpus(folder: Path, gpus: int, total_mib: int = GPU_MIB) -> FakeGpus:
    """Make GPUs in a folder that hosts see, beside the library that shows them and its binding."""
    folder.chmod(0o755)  # for the users of the daemons
    fake = FakeGpus(folder)
    for _ in range(gpus):
        fake.add(total_mib=total_mib)
    shutil.copy2(compiled_shim(), folder)
    shutil.copy2(str(pynvml.__file__), folder)
    return fake


def sized_model(role: str, memory_mib: int, **settings: Any) -> dict[str, Any]:
    """Return an entry of `models` that says what its model takes, and make the model."""
    return {**model(role, says=f"here is the {role}"), "memory_mib": memory_mib, **settings}


def own_model(host: Host, entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an entry of `models` whose file is a copy of its own: OWN_MODELS/NAME-copy.gguf."""
    path = OWN_MODELS / f"{name}-copy.gguf"
    host.run("mkdir", "-p", str(OWN_MODELS))
    host.run("cp", entry["path"], str(path))
    return {**entry, "path": str(path)}


def memory_rules(models: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return what llama-servers of these models take (MiB, by file name): what their entries say."""
    return {Path(each["path"]).name: each["memory_mib"] for each in models if "memory_mib" in each}


# -- what an agent says -----------------------------------------------------------------------


def words_of(mesh: Mesh, instance: str) -> str:
    """Return all that the agent says of an instance, as text."""
    return json.dumps(mesh.instances()[instance])


def running(mesh: Mesh) -> dict[str, str]:
    """Return which model each instance has that is ready."""
    return {
        name: str(each["model_id"])
        for name, each in mesh.instances().items()
        if each["state"] == "ready"
    }


def pids(mesh: Mesh) -> dict[str, int]:
    """Return the main process of each instance that is ready."""
    ready = {
        name: each["pid"] for name, each in mesh.instances().items() if each["state"] == "ready"
    }
    return {name: pid for name, pid in ready.items() if pid}


def place_of(mesh: Mesh, role: str) -> str:
    """Return the instance that has a role's model; fails unless there is exactly one."""
    (name,) = [name for name, model in running(mesh).items() if model == f"{role}-gguf"]
    return name


def unload_all(mesh: Mesh) -> None:
    """Have the agent unload everything, and wait until nothing runs there."""
    node = mesh.ask_node("GET", "/v1/node").json
    for model_id in {each["model_id"] for each in node["instances"] if each["model_id"]}:
        mesh.ask_node("POST", f"/v1/node/models/{model_id}/unload", {})

    def nothing_runs() -> bool:
        states = {each["state"] for each in mesh.instances().values()}
        return states <= {"stopped", "failed"}

    eventually_sync(nothing_runs, what="nothing runs", deadline_s=LOAD_DEADLINE_S)


def reconfigure(mesh: Mesh, name: str, tree: Mapping[str, Any] | None) -> None:
    """Write one more file for the agent, or remove it, and have everything read again."""
    path = f"/etc/rolemesh/node.d/{name}"
    if tree is None:
        mesh.node.run("rm", "-f", path)
    else:
        mesh.node.put(path, yaml.safe_dump(dict(tree)), mode=0o640)
        mesh.node.run("chgrp", "_rolemesh-llama", path)
    mesh.node.run("systemctl", "reload", AGENT)


def shown_nodes(mesh: Mesh) -> str:
    """Return what `rolemeshctl nodes` shows on the gateway, its notes included."""
    done = mesh.gateway.run("rolemeshctl", "nodes")
    return f"{done.stdout}{done.stderr}"


def agent_lines(host: Host) -> list[str]:
    """Return what the agent has logged."""
    return [str(entry["MESSAGE"]) for entry in host.journal(f"_SYSTEMD_UNIT={AGENT}")]


def llama_lines(host: Host, instance: str) -> list[str]:
    """Return what an instance's unit has logged, llama-server's lines and systemd's included."""
    unit = llama_unit(instance)
    entries = host.journal(f"_SYSTEMD_UNIT={unit}", "+", f"UNIT={unit}")
    return [str(entry["MESSAGE"]) for entry in entries]


def loads_of(host: Host, model_id: str) -> int:
    """Return how many loads of a model have begun on a host, as its units tell."""
    lines = [str(each["MESSAGE"]) for each in host.journal("SYSLOG_IDENTIFIER=rolemesh-llama")]
    return sum(line.startswith(f"loading {model_id} ") for line in lines)


# -- clients ----------------------------------------------------------------------------------


class Clients:
    """Requests side by side, each from a thread of its own; a context manager."""

    def __init__(self, mesh: Mesh, most: int = 24) -> None:
        self._mesh = mesh
        self._pool = ThreadPoolExecutor(most)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def chat(self, alias: str, **fields: Any) -> Future[Reply]:
        """Ask the gateway; the reply comes later."""
        return self.run(self._mesh.chat, alias, **fields)

    def run(self, act: Callable[..., _T], *args: Any, **options: Any) -> Future[_T]:
        """Do something else that takes a while."""
        return self._pool.submit(act, *args, **options)
