"""Which instances shall exist, from settings and inventory; pure.

Configured instances exist whether or not their GPU is there (then they are unavailable, with the
reason). With none configured there is one per GPU that is or was there, and cpu0 where no GPU is
and the policy allows it.
"""

import re
from dataclasses import dataclass, replace

from rolemesh.agent.inventory import Inventory
from rolemesh.config.settings import InstanceSettings, ModelSettings, NodeSettings
from rolemesh.names import InstanceName, ModelId

_NUMBER = re.compile(r"gpu([0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredInstance:
    """One instance as it shall be. `model` is the one it runs unless asked otherwise.

    `devices` are the UUIDs it may use, none for a CPU instance. `missing` says why it cannot run
    now; "" when it can.
    """

    name: InstanceName
    devices: tuple[str, ...] = ()
    model: ModelId | None = None
    pinned: bool = False
    missing: str = ""


def desired_instances(settings: NodeSettings, inventory: Inventory) -> tuple[DesiredInstance, ...]:
    """Return the instances that shall exist: GPUs before CPUs, each in order of name."""
    configured = settings.instances.values() or _default_instances(settings, inventory)
    instances = [_desired_instance(instance, settings, inventory) for instance in configured]
    return tuple(
        sorted(instances, key=lambda instance: (not is_gpu(instance.name), _order(instance.name)))
    )


def changed_models(old: NodeSettings, new: NodeSettings) -> frozenset[ModelId]:
    """Return the models of `old` that are gone from `new` or would run differently there."""
    if old.llama_server != new.llama_server:
        return frozenset(old.models)
    return frozenset(
        model_id
        for model_id, model in old.models.items()
        if model_id not in new.models or _as_run(model) != _as_run(new.models[model_id])
    )


def _as_run(model: ModelSettings) -> ModelSettings:
    return replace(model, roles=(), origin="")


def is_gpu(name: InstanceName) -> bool:
    """Tell whether an instance runs on a GPU."""
    return name.startswith("gpu")


def _order(name: InstanceName) -> tuple[int, str]:
    number, _, suffix = name[3:].partition("-")
    return int(number), suffix


def _default_instances(settings: NodeSettings, inventory: Inventory) -> list[InstanceSettings]:
    # Lost cards too: a moment without readings must not end what runs on them.
    numbers = {gpu.number for gpu in inventory.gpus} | inventory.lost.keys()
    names = [f"gpu{number}" for number in numbers]
    if not inventory.gpus and settings.policy.allow_cpu:
        names.append("cpu0")
    return [InstanceSettings(name=InstanceName(name)) for name in names]


def _desired_instance(
    instance: InstanceSettings, settings: NodeSettings, inventory: Inventory
) -> DesiredInstance:
    devices, missing = _find_devices(instance.name, settings, inventory)
    return DesiredInstance(
        name=instance.name,
        devices=devices,
        model=instance.model,
        pinned=instance.pinned,
        missing=missing,
    )


def _find_devices(
    name: InstanceName, settings: NodeSettings, inventory: Inventory
) -> tuple[tuple[str, ...], str]:
    """Return the devices of an instance and, when it cannot run, the reason."""
    match = _NUMBER.match(name)
    if match is None:
        return (), "" if settings.policy.allow_cpu else "policy.allow_cpu is false"
    number = int(match[1])
    gpu = inventory.gpu(number)
    if gpu is not None:
        return (gpu.reading.uuid,), ""
    return (), _missing_gpu_text(number, inventory)


def _missing_gpu_text(number: int, inventory: Inventory) -> str:
    uuid = inventory.lost.get(number)
    text = f"gpu{number} is not there" + (f" any more ({uuid})" if uuid else "")
    return "; ".join((text, *inventory.problems))
