"""The memory of the machine as the fleet counts it, and the wait until it is really there.

What our own instances take is known by estimate, and by NVML once they run. What is used beyond
that belongs to others; it is measured while nothing of ours changes on a GPU, because a
llama-server that comes or goes takes or gives back its memory only little by little.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from rolemesh.agent.host import Host
from rolemesh.agent.instance import InstanceState
from rolemesh.agent.inventory import Gpu, Inventory
from rolemesh.agent.observation import HostObservation
from rolemesh.agent.placement_view import RAM, PlacementView, Room, Surroundings, gib, share
from rolemesh.config.settings import NodePolicy
from rolemesh.errors import NodeError
from rolemesh.names import InstanceName

SETTLE_S: Final = 10.0
"""How long after a start or stop the memory of a GPU may still change by it."""

RELEASE_WAIT_S: Final = 30.0
"""How long a start waits for memory that stopped processes have not given back."""

POLL_S: Final = 0.1
_MIB: Final = 1 << 20

ReadInventory = Callable[[], Awaitable[Inventory]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One of our instances on GPUs, and the processes by which NVML knows it."""

    view: PlacementView
    pids: frozenset[int] = frozenset()


class FleetMemory:
    """Owner of what others take of each GPU."""

    def __init__(self, read: ReadInventory | None = None) -> None:
        self._read = read
        self._foreign: dict[str, int] = {}
        self._touched: dict[str, float] = {}
        self._held: dict[InstanceName, dict[str, int]] = {}
        self._clock = asyncio.get_running_loop().time

    def touch(self, devices: Iterable[str]) -> None:
        """Learn that something of ours comes or goes on these GPUs."""
        now = self._clock()
        self._touched |= dict.fromkeys(devices, now)

    def held(self, instance: InstanceName) -> Mapping[str, int]:
        """Return what an instance was last seen to hold, by name of the GPU, in bytes."""
        return self._held.get(instance, {})

    def observe_host(self, host: Host, tenants: Iterable[Tenant]) -> None:
        """Measure what others take of the machine's memory.

        Weights that are mapped count as available to the kernel; the rest of ours does not.
        """
        total, available = host.memory_total_mib, host.memory_available_mib
        if total is not None and available is not None:
            needs = [each.view.need for each in tenants if each.view.places == (RAM,)]
            ours = sum(need.total - need.weights for need in needs if need is not None)
            self._foreign[RAM] = max(0, (total - available) * _MIB - ours)

    def observe(self, inventory: Inventory, tenants: Iterable[Tenant]) -> None:
        """Measure what others take wherever nothing of ours changes, and what ours take."""
        if not inventory.answered:
            return  # these are the figures of before
        now = self._clock()
        by_device: dict[str, list[Tenant]] = {}
        self._held = {}
        for tenant in tenants:
            if tenant.view.state is InstanceState.READY:
                self._held[tenant.view.name] = _told(inventory, tenant)
            for device in tenant.view.devices:
                by_device.setdefault(device, []).append(tenant)
        for gpu in inventory.gpus:
            uuid, used_mib = gpu.reading.uuid, gpu.reading.memory_used_mib
            here = by_device.get(uuid, ())
            settled = now - self._touched.get(uuid, -SETTLE_S) >= SETTLE_S and all(
                tenant.view.state is InstanceState.READY for tenant in here
            )
            if used_mib is None:
                continue
            foreign = max(0, used_mib * _MIB - sum(_taken(gpu, tenant) for tenant in here))
            before = self._foreign.get(uuid, foreign)
            # What comes and goes meanwhile is ours, or that of an earlier agent: others have at most
            # what is left.
            self._foreign[uuid] = foreign if settled else min(before, foreign)

    def surroundings(
        self, observation: HostObservation | None, policy: NodePolicy, *, may_share: bool
    ) -> Surroundings:
        """Return what placement has to know of the machine."""
        return Surroundings(
            rooms={} if observation is None else self._rooms(observation),
            margin=policy.memory_margin_mib * _MIB,
            switch_after_s=policy.switch_after_s,
            min_resident_s=policy.min_resident_s,
            may_share=may_share,
        )

    def _rooms(self, observation: HostObservation) -> Mapping[str, Room]:
        rooms = {
            gpu.reading.uuid: Room(
                name=gpu.name,
                total=_bytes(gpu.reading.memory_total_mib),
                foreign=self._foreign.get(gpu.reading.uuid, 0),
                is_slice=gpu.slice is not None,
            )
            for gpu in observation.inventory.gpus
        }
        total = _bytes(observation.host.memory_total_mib)
        foreign = self._foreign.get(RAM, 0)
        return {**rooms, RAM: Room(name="the machine's memory", total=total, foreign=foreign)}

    async def is_free(self, devices: tuple[str, ...], required: int) -> bool:
        """Tell whether `required` bytes are free on each of the GPUs now, as far as they tell."""
        if self._read is None or not devices:
            return True
        return not _lacking(await self._read(), devices, required)

    async def until_free(
        self,
        devices: tuple[str, ...],
        required: int,
        *,
        told: Callable[[str], None],
        wait_s: float = RELEASE_WAIT_S,
    ) -> None:
        """Return once `required` bytes are really free on each of the GPUs.

        `told` hears what is waited for. Raises NodeError with the figures
        when they are not free within `wait_s`. Cards that do not tell are not waited for.
        """
        if self._read is None or not devices:
            return
        deadline = self._clock() + wait_s
        while True:
            inventory = await self._read()
            lacking = _lacking(inventory, devices, required)
            if not lacking or not inventory.answered:
                return  # figures of before a driver hung do not change by waiting
            told(f"waits for memory: needs {gib(required)}, {lacking}")
            if self._clock() >= deadline:
                msg = f"needs {gib(required)}, but {lacking} after waiting {wait_s:g} s for more"
                raise NodeError(msg)
            await asyncio.sleep(POLL_S)


def _lacking(inventory: Inventory, devices: tuple[str, ...], required: int) -> str:
    """Say which GPUs have less than `required` free, and who uses them; "" when none has."""
    texts = []
    for gpu in inventory.gpus:
        reading = gpu.reading
        if reading.uuid not in devices or None in (
            reading.memory_total_mib,
            reading.memory_used_mib,
        ):
            continue
        free = ((reading.memory_total_mib or 0) - (reading.memory_used_mib or 0)) * _MIB
        if free < required:
            pids = ", ".join(str(process.pid) for process in reading.processes)
            users = f" (used by pid {pids})" if pids else ""
            texts.append(f"{gpu.name} has {gib(max(free, 0))} free{users}")
    return ", ".join(texts)


def _taken(gpu: Gpu, tenant: Tenant) -> int:
    """Return what an instance takes of a GPU: as NVML says, else, once it runs, as estimated."""
    told = _of_processes(gpu, tenant)
    if told is None and tenant.view.state is InstanceState.READY:
        return share(tenant.view.need, tenant.view.places)
    return told or 0


def _told(inventory: Inventory, tenant: Tenant) -> dict[str, int]:
    """Return what NVML says that an instance takes, by name of the GPU."""
    found = {gpu.name: _of_processes(gpu, tenant) for gpu in inventory.gpus}
    return {name: taken for name, taken in found.items() if taken is not None}


def _of_processes(gpu: Gpu, tenant: Tenant) -> int | None:
    told = [process.memory_mib for process in gpu.reading.processes if process.pid in tenant.pids]
    known = [each for each in told if each is not None]
    return sum(known) * _MIB if known else None


def _bytes(mib: int | None) -> int | None:
    return None if mib is None else mib * _MIB
