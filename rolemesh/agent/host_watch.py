"""Looks at the machine again and again: GPUs, memory, model files, the llama-server binary."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from rolemesh.agent.gpu_watch import GpuWatch
from rolemesh.agent.host import read_host
from rolemesh.agent.inventory import Inventory
from rolemesh.agent.model_check import ModelCheck
from rolemesh.agent.observation import HostObservation
from rolemesh.config.settings import NodeSettings
from rolemesh.runtime.log import fields
from rolemesh.runtime.operator_events import OperatorEvent

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 5.0


class HostWatch:
    """Owner of the latest observation."""

    def __init__(self, *, gpus: GpuWatch, models: ModelCheck) -> None:
        self._gpus = gpus
        self._models = models
        self._told: frozenset[str] = frozenset()
        self._looking = asyncio.Lock()

    async def observe(self, settings: NodeSettings) -> HostObservation:
        """Look once. What is newly wrong is logged."""
        async with self._looking:
            return await self._look(settings)

    async def read_gpus(self, settings: NodeSettings) -> Inventory:
        """Look at the GPUs alone, for somebody who waits for their memory."""
        return await self._gpus.look(settings)

    async def renumber(self, settings: NodeSettings) -> HostObservation:
        """Number the GPUs that are there anew, forget those that are gone, and look.

        Raises NodeError when that would change the name of one that another agent uses.
        """
        async with self._looking:
            await self._gpus.renumber(settings)
            return await self._look(settings)

    async def aclose(self) -> None:
        """Let go of the GPUs."""
        await self._gpus.aclose()

    async def _look(self, settings: NodeSettings) -> HostObservation:
        inventory = await self._gpus.look(settings)
        problems = await self._models.run(settings)
        observation = HostObservation(
            inventory=inventory,
            host=read_host(),
            model_problems=problems,
            state_problem=self._gpus.state_problem,
            programs=self._models.programs,
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
        inventory, problems = observation.inventory, observation.model_problems
        lost = {f"gpu{number} is lost: {why}" for number, why in inventory.gone.items()}
        of_others = (
            problem
            for problem in inventory.problems
            if not problem.endswith(tuple(inventory.gone.values()))
        )
        found = (*of_others, *problems.node, *problems.models.values())
        for problem in found:
            if problem not in self._told:
                logger.warning("%s", problem)
        for text in lost - self._told:
            logger.error("%s", text, extra=fields(event=OperatorEvent.GPU_LOST))
        self._told = frozenset(found) | lost
