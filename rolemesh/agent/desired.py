"""Which instances shall exist, from settings and inventory; pure.

Configured instances exist whether or not their GPU is there (then they are unavailable, with the
reason). With none configured there is one per GPU (or slice of one) that is or was there, and cpu0 where no GPU is and the policy allows it.
"""

from dataclasses import dataclass, replace

from rolemesh.agent.inventory import Inventory, gpu_of
from rolemesh.agent.placement_view import is_gpu
from rolemesh.config.settings import InstanceSettings, NodeSettings
from rolemesh.llama.command import as_run
from rolemesh.names import InstanceName, ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredInstance:
    """One instance as it shall be. `model` is the one it runs unless asked otherwise.

    `devices` are the UUIDs it may use, none for a CPU instance; `is_fixed`: the settings say which.
    `missing` says why it cannot run now, "" when it can; `is_lost`: and never will, its card is
    lost. `is_foreign`: another agent has it. `is_extra`: the agent made it beside another, and forgets it once it is empty.
    """

    name: InstanceName
    devices: tuple[str, ...] = ()
    model: ModelId | None = None
    pinned: bool = False
    missing: str = ""
    is_fixed: bool = False
    is_lost: bool = False
    is_foreign: bool = False
    is_extra: bool = False


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
        if model_id not in new.models or as_run(model) != as_run(new.models[model_id])
    )


def _order(name: InstanceName) -> tuple[int, str]:
    number, _, suffix = name[3:].partition("-")
    return int(number), suffix


def _default_instances(settings: NodeSettings, inventory: Inventory) -> list[InstanceSettings]:
    # Lost cards too: a moment without readings must not end what runs on them.
    names = [*inventory.names]
    if not inventory.gpus and settings.policy.allow_cpu:
        names.append("cpu0")
    return [InstanceSettings(name=InstanceName(name)) for name in names]


def _desired_instance(
    instance: InstanceSettings, settings: NodeSettings, inventory: Inventory
) -> DesiredInstance:
    name = instance.name
    desired = DesiredInstance(
        name=name, model=instance.model, pinned=instance.pinned, is_fixed=bool(instance.gpus)
    )
    if name in inventory.taken:
        return replace(desired, missing=inventory.why_missing(name), is_foreign=True)
    if not is_gpu(name):
        allowed = settings.policy.allow_cpu
        return replace(desired, missing="" if allowed else "policy.allow_cpu is false")
    others = [f"gpu{number}" for number in instance.gpus[1:]]
    found = {each: inventory.find(each) for each in (name, *others)}
    missing = [inventory.why_missing(each) for each, gpu in found.items() if gpu is None]
    numbers = {int(gpu_of(each)[3:].partition("-")[0]) for each in found}
    return replace(
        desired,
        devices=tuple(gpu.reading.uuid for gpu in found.values() if gpu is not None),
        missing="; ".join(missing),
        is_lost=any(number in inventory.gone for number in numbers),
        is_foreign=gpu_of(name) in inventory.taken or gpu_of(name) in inventory.unlisted,
    )
