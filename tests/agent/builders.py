"""Settings as the tests of the agent need them, in few words."""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rolemesh.agent.desired import DesiredInstance
from rolemesh.agent.host import read_host
from rolemesh.agent.inventory import Gpu, GpuReading, Inventory
from rolemesh.agent.model_check import ModelProblems
from rolemesh.agent.observation import HostObservation
from rolemesh.config.settings import InstanceSettings, ModelSettings, NodePolicy, NodeSettings
from rolemesh.llama.memory import MemoryNeed
from rolemesh.names import InstanceName, ModelId, NodeId, Role


def model(
    name: str, *, parallel: int = 1, roles: tuple[str, ...] = ("planner",), **others: Any
) -> ModelSettings:
    return ModelSettings(
        model_id=ModelId(name),
        path=Path(f"/models/{name}.gguf"),
        roles=tuple(map(Role, roles)),
        parallel=parallel,
        **others,
    )


def node_settings(
    *models: ModelSettings | str,
    instances: dict[str, str | None] | None = None,
    pinned: tuple[str, ...] = (),
    allow_cpu: bool = True,
    policy: NodePolicy | None = None,
    **others: Any,
) -> NodeSettings:
    """Return settings; `instances` maps names to the model each runs."""
    built = [each if isinstance(each, ModelSettings) else model(each) for each in models]
    return NodeSettings(
        node_id=NodeId("box"),
        models=MappingProxyType({each.model_id: each for each in built}),
        instances=MappingProxyType(
            {
                InstanceName(name): InstanceSettings(
                    name=InstanceName(name),
                    model=None if runs is None else ModelId(runs),
                    pinned=name in pinned,
                )
                for name, runs in (instances or {}).items()
            }
        ),
        policy=policy or NodePolicy(allow_cpu=allow_cpu),
        **others,
    )


def inventory(*numbers: int, lost: dict[int, str] | None = None, problem: str = "") -> Inventory:
    """Return GPUs with these numbers and UUIDs `GPU-<number>`."""
    return Inventory(
        gpus=tuple(
            Gpu(number=number, reading=GpuReading(uuid=f"GPU-{number}", name="card"))
            for number in numbers
        ),
        lost=lost or {},
        problems=(problem,) if problem else (),
    )


def observation(
    *numbers: int,
    total_mib: int | None = None,
    used_mib: int | None = None,
    needs_mib: dict[str, int] | None = None,
    problems: dict[str, str] | None = None,
) -> HostObservation:
    """Return GPUs of a size with some of it in use, and what is known of the models."""
    found = inventory(*numbers)
    gpus = [
        replace(
            gpu,
            reading=replace(gpu.reading, memory_total_mib=total_mib, memory_used_mib=used_mib),
        )
        for gpu in found.gpus
    ]
    needs = {
        ModelId(name): MemoryNeed(weights=mib << 20) for name, mib in (needs_mib or {}).items()
    }
    return HostObservation(
        inventory=replace(found, gpus=tuple(gpus)),
        host=read_host(),
        model_problems=ModelProblems(
            models={ModelId(name): text for name, text in (problems or {}).items()}, needs=needs
        ),
    )


def desired(name: str, runs: str | None = None, **others: Any) -> DesiredInstance:
    devices = (f"GPU-{name[3:]}",) if name.startswith("gpu") else ()
    return DesiredInstance(
        name=InstanceName(name),
        devices=devices,
        model=None if runs is None else ModelId(runs),
        **others,
    )
