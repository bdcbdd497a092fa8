"""What this node has: GPU readings get the numbers they keep for ever; pure.

A card is identified by its UUID. Its number (the N of `gpuN`) is remembered, so that a card that
is lost keeps its number and a new one takes the next free.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

GpuNumbers = Mapping[str, int]
"""UUID -> N of `gpuN`, for every card ever seen here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """One sample of one GPU; None: the card or its driver does not tell.

    `utilisation` is percent, `pci` the PCI bus id, `pids` the processes that compute on it.
    """

    uuid: str
    name: str
    pci: str = ""
    memory_total_mib: int | None = None
    memory_used_mib: int | None = None
    utilisation: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """All GPUs at one moment. `problems`: what could not be read, with what brings it."""

    readings: tuple[GpuReading, ...] = ()
    driver_version: str = ""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One card with the number it keeps."""

    number: int
    reading: GpuReading

    def to_json(self) -> dict[str, Any]:
        """Return the element of `gpus` in reports."""
        reading = self.reading
        return {
            "gpu": f"gpu{self.number}",
            "uuid": reading.uuid,
            "name": reading.name,
            "pci": reading.pci,
            "memory_total_mib": reading.memory_total_mib,
            "memory_used_mib": reading.memory_used_mib,
            "utilisation": reading.utilisation,
            "temperature_c": reading.temperature_c,
            "power_w": reading.power_w,
            "pids": list(reading.pids),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What is there now, in order of number. `lost`: numbers of cards seen before, with UUIDs."""

    gpus: tuple[Gpu, ...] = ()
    lost: Mapping[int, str]
    driver_version: str = ""
    problems: tuple[str, ...] = ()

    def gpu(self, number: int) -> Gpu | None:
        """Return the card with this number if it is there."""
        return next((gpu for gpu in self.gpus if gpu.number == number), None)


def build_inventory(sample: GpuSample, remembered: GpuNumbers) -> tuple[Inventory, GpuNumbers]:
    """Number the cards of `sample`; return the inventory and what to remember from now on."""
    numbers = _number_gpus((reading.uuid for reading in sample.readings), remembered)
    gpus = [Gpu(number=numbers[reading.uuid], reading=reading) for reading in sample.readings]
    present = {gpu.reading.uuid for gpu in gpus}
    inventory = Inventory(
        gpus=tuple(sorted(gpus, key=lambda gpu: gpu.number)),
        lost={number: uuid for uuid, number in numbers.items() if uuid not in present},
        driver_version=sample.driver_version,
        problems=sample.problems,
    )
    return inventory, numbers


def _number_gpus(uuids: Iterable[str], remembered: GpuNumbers) -> dict[str, int]:
    numbers = dict(remembered)
    taken = set(numbers.values())
    for uuid in uuids:
        if uuid not in numbers:
            numbers[uuid] = next(n for n in range(len(taken) + 1) if n not in taken)
            taken.add(numbers[uuid])
    return numbers
