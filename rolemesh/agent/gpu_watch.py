"""The GPUs that this agent may use: NVML, else llama-server's devices -> names -> one owner each."""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rolemesh.agent.gpu_claims import GpuClaims
from rolemesh.agent.gpu_numbers import GpuNumbersFile
from rolemesh.agent.inventory import (
    GpuNames,
    GpuSample,
    Inventory,
    build_inventory,
    claimable,
    may_have_devices,
    owned,
    renumbered,
)
from rolemesh.agent.nvml import Nvml
from rolemesh.agent.other_devices import OtherDevices
from rolemesh.config.settings import NodeSettings
from rolemesh.errors import NodeError

if TYPE_CHECKING:
    from collections.abc import Callable

_DEFAULT_CPU: Final = "cpu0"


class GpuWatch:
    """Owner of all that it takes to know the GPUs.

    `shares_units`: all agents of this host start the same units, so that an instance without a GPU
    has one owner too. `in_use` may be set to who tells on which GPUs something of ours still runs:
    they are not let go of before that has ended.
    """

    def __init__(
        self,
        *,
        nvml: Nvml,
        devices: OtherDevices,
        numbers: GpuNumbersFile,
        claims: GpuClaims,
        shares_units: bool,
    ) -> None:
        self._nvml = nvml
        self._devices = devices
        self._numbers = numbers
        self._claims = claims
        self._shares_units = shares_units
        self.in_use: Callable[[], frozenset[str]] = frozenset
        self._looking = asyncio.Lock()

    @property
    def state_problem(self) -> str:
        """Say which state is not saved, since when and why; "" when all is."""
        return self._numbers.problem

    async def look(self, settings: NodeSettings) -> Inventory:
        """Return what is there now and may be used by an agent with these settings; never raises.

        Cheap enough to be called ten times a second.
        """
        async with self._looking:
            sample = await self._sample(settings)
            names = await asyncio.to_thread(self._numbers.name, sample)
            return self._owned(settings, sample, names)

    async def renumber(self, settings: NodeSettings) -> Inventory:
        """Number all GPUs of the host from 0 in PCI order, and forget those that are not there.

        Raises NodeError when that would change the name of one that another agent uses.
        """
        async with self._looking:
            sample = await self._sample(settings)
            before = await asyncio.to_thread(self._numbers.name, sample)
            self._refuse_to_rename(settings, sample, before)
            names = await asyncio.to_thread(self._numbers.renumber, sample)
            return self._owned(settings, sample, names)

    async def aclose(self) -> None:
        """Let go of the GPUs and of their driver."""
        await self._nvml.close()
        self._claims.close()

    async def _sample(self, settings: NodeSettings) -> GpuSample:
        sample = await self._nvml.read()
        remembered = await asyncio.to_thread(self._numbers.name, sample)
        if not _wants_gpus(settings) or not may_have_devices(sample, remembered):
            return sample
        devices = await self._devices.read(settings)
        if self._devices.problem:
            sample = replace(sample, problems=(*sample.problems, self._devices.problem))
        return replace(sample, readings=devices)

    def _owned(self, settings: NodeSettings, sample: GpuSample, names: GpuNames) -> Inventory:
        whole = build_inventory(sample, names)
        wanted = self._wanted(settings, whole)
        # Another agent would get it while it is let go of only to be taken again.
        refused = self._claims.claim(wanted, keep=(_DEFAULT_CPU,))
        inventory = owned(whole, settings.gpus, refused)
        if self._shares_units and not settings.instances and not inventory.gpus:
            wanted.add(_DEFAULT_CPU)
        inventory = owned(whole, settings.gpus, self._claims.claim(wanted))
        problem = self._claims.problem
        return replace(inventory, problems=(*inventory.problems, *((problem,) if problem else ())))

    def _wanted(self, settings: NodeSettings, inventory: Inventory) -> set[str]:
        """Return what to claim: GPUs where any are used, and configured instances without one."""
        gpus = claimable(inventory, settings.gpus) if _wants_gpus(settings) else ()
        cpus = [name for name in settings.instances if name.startswith("cpu")]
        return {*gpus, *self.in_use(), *(cpus if self._shares_units else ())}

    def _refuse_to_rename(
        self, settings: NodeSettings, sample: GpuSample, before: GpuNames
    ) -> None:
        after = renumbered(sample)
        renamed = {uuid for uuid, name in after.items() if before.get(uuid) != name}
        inventory = build_inventory(sample, before)
        wanted = self._wanted(settings, inventory) | renamed
        for uuid, owner in self._claims.claim(wanted, keep=(_DEFAULT_CPU,)).items():
            if uuid in renamed:
                msg = f"{before[uuid]} would become {after[uuid]}, but is used by {owner}"
                raise NodeError(msg)


def _wants_gpus(settings: NodeSettings) -> bool:
    return not settings.instances or any(name.startswith("gpu") for name in settings.instances)
