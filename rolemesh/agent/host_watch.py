"""Looks at the machine again and again: GPUs, memory, model files, the llama-server binary."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rolemesh.agent.gpu_numbers import GpuNumbersFile
from rolemesh.agent.host import Host, read_host
from rolemesh.agent.inventory import GpuNumbers, Inventory, build_inventory
from rolemesh.agent.model_check import ModelCheck, ModelProblems
from rolemesh.agent.nvml import Nvml
from rolemesh.config.settings import NodeSettings

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostObservation:
    """The machine at one moment; `state_problem` says which state is not saved."""

    inventory: Inventory
    host: Host
    model_problems: ModelProblems
    state_problem: str = ""


class HostWatch:
    """Owner of the latest observation."""

    def __init__(self, *, nvml: Nvml, numbers_file: GpuNumbersFile, models: ModelCheck) -> None:
        self._nvml = nvml
        self._numbers_file = numbers_file
        self._models = models
        self._numbers: GpuNumbers = numbers_file.load()
        self._told: frozenset[str] = frozenset()
        self._looking = asyncio.Lock()

    async def observe(self, settings: NodeSettings) -> HostObservation:
        """Look once. What is newly wrong is logged."""
        async with self._looking:
            return await self._look(settings)

    async def aclose(self) -> None:
        """Let go of the GPU driver."""
        await self._nvml.close()

    async def _look(self, settings: NodeSettings) -> HostObservation:
        sample = await self._nvml.read()
        inventory, self._numbers = build_inventory(sample, self._numbers)
        self._numbers_file.save(self._numbers)
        observation = HostObservation(
            inventory=inventory,
            host=read_host(),
            model_problems=await self._models.run(settings),
            state_problem=self._numbers_file.problem,
        )
        self._log_new_problems(observation)
        return observation

    async def run(
        self,
        settings: Callable[[], NodeSettings],
        on_observation: Callable[[HostObservation], None],
    ) -> None:
        """Look every INTERVAL_S until cancelled; `settings` gives those in force."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            on_observation(await self.observe(settings()))

    def _log_new_problems(self, observation: HostObservation) -> None:
        problems = observation.model_problems
        found = (*observation.inventory.problems, *problems.node, *problems.models.values())
        for problem in found:
            if problem not in self._told:
                logger.warning("%s", problem)
        self._told = frozenset(found)
