"""What this node has: GPU readings get the names they keep for ever; pure.

A card is identified by its UUID. Its number (the N of `gpuN`) is remembered, so that a card that
is lost keeps its number and a new one takes the next free. A card in MIG mode is replaced by its
slices (`gpuN-migM`), whose M is remembered in the same way.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Literal

GpuNames = Mapping[str, str]
"""UUID -> `gpuN` or `gpuN-migM`, for every card and slice ever seen here."""

GPU_NAME: Final = re.compile(r"gpu(0|[1-9][0-9]{0,2})(?:-mig(0|[1-9][0-9]?))?")
_INSTANCE_GPU: Final = re.compile(r"gpu[0-9]+(?:-mig[0-9]+$)?")
_NONE: Final[Mapping[Any, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process on a GPU; `memory_mib` None: the driver does not tell."""

    pid: int
    memory_mib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """One sample of one GPU or MIG slice; None: the card or its driver does not tell.

    `utilisation` is percent, `pci` the PCI bus id, `parent` the UUID of the card that a slice is a
    part of. `health` says in words what is wrong with a card that still works. `kind` "device": not
    from NVML but named by llama-server, and `uuid` is that name.
    """

    uuid: str
    name: str
    kind: Literal["nvml", "device"] = "nvml"
    parent: str = ""
    pci: str = ""
    memory_total_mib: int | None = None
    memory_used_mib: int | None = None
    utilisation: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    processes: tuple[GpuProcess, ...] = ()
    health: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """All GPUs at one moment. `problems`: what could not be read, with what brings it.

    `gone`: why a card cannot be used any more, by UUID, as the driver itself says. `partitioned`
    are the UUIDs of the cards whose slices stand in `readings`. `answered` False: the driver does
    not answer, and the readings are those of before.
    """

    readings: tuple[GpuReading, ...] = ()
    driver_version: str = ""
    problems: tuple[str, ...] = ()
    gone: Mapping[str, str] = field(default_factory=lambda: _NONE)
    partitioned: frozenset[str] = frozenset()
    answered: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One card, or a slice of one, with the number (and that of the slice) it keeps."""

    number: int
    reading: GpuReading
    slice: int | None = None

    @property
    def name(self) -> str:
        """`gpuN` or `gpuN-migM`."""
        return f"gpu{self.number}" + ("" if self.slice is None else f"-mig{self.slice}")

    def to_json(self) -> dict[str, Any]:
        """Return the element of `gpus` in reports."""
        reading = self.reading
        return {
            "gpu": self.name,
            "uuid": reading.uuid,
            "name": reading.name,
            "kind": reading.kind,
            "parent": reading.parent or None,
            "pci": reading.pci,
            "memory_total_mib": reading.memory_total_mib,
            "memory_used_mib": reading.memory_used_mib,
            "utilisation": reading.utilisation,
            "temperature_c": reading.temperature_c,
            "power_w": reading.power_w,
            "processes": [
                {"pid": each.pid, "memory_mib": each.memory_mib} for each in reading.processes
            ],
            "health": list(reading.health),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What is there now and may be used, in order of number.

    `lost` are numbers of cards seen before, with UUIDs; those of them that the driver calls lost
    stand in `gone` with the reason. `lost_slices` are slices seen before, by name. `partitioned`
    are cards in MIG mode. `taken` says who has a GPU, or an instance without one (both by name),
    that is another agent's; `unlisted` are names of those that the settings do not give to this.
    `answered` False: the driver does not answer, and the figures are those of before.
    """

    gpus: tuple[Gpu, ...] = ()
    lost: Mapping[int, str]
    gone: Mapping[int, str] = field(default_factory=lambda: _NONE)
    lost_slices: Mapping[str, str] = field(default_factory=lambda: _NONE)
    partitioned: Mapping[int, str] = field(default_factory=lambda: _NONE)
    taken: Mapping[str, str] = field(default_factory=lambda: _NONE)
    unlisted: frozenset[str] = frozenset()
    driver_version: str = ""
    problems: tuple[str, ...] = ()
    answered: bool = True

    def gpu(self, number: int) -> Gpu | None:
        """Return the card with this number if it is there and not partitioned."""
        return self.find(f"gpu{number}")

    def find(self, instance: str) -> Gpu | None:
        """Return the card or slice that an instance has by its name, if it is there."""
        name = gpu_of(instance)
        return next((gpu for gpu in self.gpus if gpu.name == name), None)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all GPUs that are or were there: whole cards, and slices."""
        cards = (f"gpu{number}" for number in self.lost)
        present = (gpu.name for gpu in self.gpus)
        taken = (name for name in self.taken if name.startswith("gpu"))
        return tuple(dict.fromkeys((*present, *cards, *self.lost_slices, *taken)))

    def why_missing(self, instance: str) -> str:
        """Say why `find` returns nothing for an instance."""
        name = gpu_of(instance) if instance.startswith("gpu") else instance
        number = int(name[3:].partition("-")[0])
        if name in self.taken:
            return f"{name} is used by {self.taken[name]}"
        if name in self.unlisted:
            return f"{name} is not among the GPUs of this agent (gpus:)"
        if number in self.partitioned:
            slices = ", ".join(gpu.name for gpu in self.gpus if gpu.number == number)
            return (
                f"{name} is not there: gpu{number} is partitioned (MIG) into {slices or 'nothing'}"
            )
        if number in self.gone:
            return f"gpu{number} is lost: {self.gone[number]}"
        uuid = self.lost_slices.get(name) or self.lost.get(number)
        text = f"{name} is not there" + (f" any more ({uuid})" if uuid else "")
        return "; ".join((text, *self.problems))


def gpu_of(instance: str) -> str:
    """Return the name of the GPU that a GPU instance is on: `gpu0-coder` is on `gpu0`."""
    match = _INSTANCE_GPU.match(instance)
    assert match, instance
    return match[0]


def build_inventory(sample: GpuSample, names: GpuNames) -> Inventory:
    """Return the inventory; `names` has those of everything in the sample (see `name_gpus`)."""
    gpus = sorted(
        (_named(reading, names[reading.uuid]) for reading in sample.readings),
        key=lambda gpu: (gpu.number, gpu.slice or 0),
    )
    present = {gpu.reading.uuid for gpu in gpus} | sample.partitioned
    missing = {uuid: name for uuid, name in names.items() if uuid not in present}
    cards = {uuid: int(name[3:]) for uuid, name in names.items() if "-" not in name}
    return Inventory(
        gpus=tuple(gpus),
        lost={cards[uuid]: uuid for uuid in missing if uuid in cards},
        gone={cards[uuid]: why for uuid, why in sample.gone.items()},
        lost_slices={
            name: uuid
            for uuid, name in missing.items()
            if uuid not in cards and _is_partitioned_still(name, names, sample)
        },
        partitioned={cards[uuid]: uuid for uuid in sample.partitioned},
        driver_version=sample.driver_version,
        problems=sample.problems,
        answered=sample.answered,
    )


def _is_partitioned_still(slice_name: str, names: GpuNames, sample: GpuSample) -> bool:
    """Tell whether a slice may come back: not while its card is there as a whole."""
    card = slice_name.partition("-")[0]
    return card not in {names[reading.uuid] for reading in sample.readings}


def _named(reading: GpuReading, name: str) -> Gpu:
    match = GPU_NAME.fullmatch(name)
    assert match, name
    part = None if match[2] is None else int(match[2])
    return Gpu(number=int(match[1]), slice=part, reading=reading)


def name_gpus(sample: GpuSample, remembered: GpuNames) -> GpuNames:
    """Return `remembered` with names for what is new in the sample."""
    names = dict(remembered)
    cards = [reading.parent or reading.uuid for reading in sample.readings]
    for uuid in (*cards, *sorted(sample.partitioned), *sorted(sample.gone)):
        names.setdefault(uuid, _free_name("gpu", names.values()))
    for reading in sample.readings:
        if reading.parent:
            names.setdefault(
                reading.uuid, _free_name(f"{names[reading.parent]}-mig", names.values())
            )
    return names


def renumbered(sample: GpuSample) -> GpuNames:
    """Return names for what is there now: 0 and on in PCI order, and nothing remembered."""
    readings = sorted(sample.readings, key=lambda reading: reading.pci)
    return name_gpus(replace(sample, readings=tuple(readings)), {})


def _free_name(prefix: str, taken: Collection[str]) -> str:
    return next(name for n in range(len(taken) + 1) if (name := f"{prefix}{n}") not in taken)


def may_have_devices(sample: GpuSample, remembered: GpuNames) -> bool:
    """Tell whether devices that llama-server names are to count.

    Only where NVML shows no GPU. One that it did show is the same as one of those devices, seen by
    another way: as long as it is remembered they do not count.
    """
    shows = sample.readings or sample.partitioned or sample.gone or not sample.answered
    return not shows and not any(_is_uuid(each) for each in remembered)


def _is_uuid(text: str) -> bool:
    return text.startswith(("GPU-", "MIG-"))


def claimable(inventory: Inventory, gpus: Sequence[int | str] | None) -> tuple[str, ...]:
    """Return the UUIDs that an agent with the setting `gpus` claims: what is there, and was."""
    return tuple(uuid for uuid, names in _identities(inventory) if _is_listed(names, gpus))


def owned(
    inventory: Inventory, gpus: Sequence[int | str] | None, refused: Mapping[str, str]
) -> Inventory:
    """Return what is left for an agent with the setting `gpus`.

    `refused` says by UUID who else uses a GPU, and by name who has an instance without one.
    """
    claimed = set(claimable(inventory, gpus))
    mine = claimed - refused.keys()
    known = dict(_identities(inventory))
    unlisted = {str(names[0]) for names in known.values() if not _is_listed(names, gpus)}
    everything = {each for names in known.values() for each in names}
    everything |= {*inventory.partitioned, *inventory.partitioned.values()}
    unknown = [each for each in gpus or () if each not in everything]
    return replace(
        inventory,
        gpus=tuple(gpu for gpu in inventory.gpus if gpu.reading.uuid in mine),
        lost={number: uuid for number, uuid in inventory.lost.items() if uuid in mine},
        lost_slices={name: uuid for name, uuid in inventory.lost_slices.items() if uuid in mine},
        taken={
            str(known.get(key, (key,))[0]): owner
            for key, owner in refused.items()
            if key in claimed or key not in known
        },
        unlisted=frozenset(unlisted),
        problems=(*inventory.problems, *map(_unknown_text, unknown)),
    )


def _unknown_text(entry: int | str) -> str:
    name = f"gpu{entry}" if isinstance(entry, int) else entry
    return f"gpus: {name} has never been seen on this host"


def _identities(inventory: Inventory) -> Iterator[tuple[str, tuple[int | str, ...]]]:
    """Yield each UUID with all that may stand for it in `gpus`, its name first."""
    for gpu in inventory.gpus:
        reading = gpu.reading
        yield reading.uuid, (gpu.name, gpu.number, reading.uuid, reading.parent)
    for number, uuid in inventory.lost.items():
        yield uuid, (f"gpu{number}", number, uuid)
    for name, uuid in inventory.lost_slices.items():
        number = int(name[3:].partition("-")[0])
        yield uuid, (name, number, uuid, inventory.partitioned.get(number, ""))


def _is_listed(identities: Iterable[int | str], gpus: Sequence[int | str] | None) -> bool:
    return gpus is None or any(each in gpus for each in identities)
