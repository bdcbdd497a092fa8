"""Settings as the tests of the agent need them, in few words."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

from rolemesh.agent.desired import DesiredInstance
from rolemesh.agent.inventory import Gpu, GpuReading, Inventory
from rolemesh.config.settings import InstanceSettings, ModelSettings, NodePolicy, NodeSettings
from rolemesh.names import InstanceName, ModelId, NodeId, Role


def model(name: str, *, parallel: int = 1, roles: tuple[str, ...] = ("planner",)) -> ModelSettings:
    return ModelSettings(
        model_id=ModelId(name),
        path=Path(f"/models/{name}.gguf"),
        roles=tuple(map(Role, roles)),
        parallel=parallel,
    )


def node_settings(
    *models: ModelSettings | str,
    instances: dict[str, str | None] | None = None,
    pinned: tuple[str, ...] = (),
    allow_cpu: bool = True,
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
        policy=NodePolicy(allow_cpu=allow_cpu),
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


def desired(name: str, runs: str | None = None, **others: Any) -> DesiredInstance:
    devices = (f"GPU-{name[3:]}",) if name.startswith("gpu") else ()
    return DesiredInstance(
        name=InstanceName(name),
        devices=devices,
        model=None if runs is None else ModelId(runs),
        **others,
    )
