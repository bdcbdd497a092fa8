"""Placement with what is known of this machine: needs from the models' files, memory from NVML."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from rolemesh.agent.fleet_memory import FleetMemory, Tenant
from rolemesh.agent.instance import InstanceState
from rolemesh.agent.managed_instance import ManagedInstance
from rolemesh.agent.observation import HostObservation
from rolemesh.agent.placement import best_first, find_sites, place_model
from rolemesh.agent.placement_view import (
    Placed,
    PlacementView,
    Refused,
    Site,
    Surroundings,
    Wanted,
    share,
)
from rolemesh.agent.unit_control import ActiveState
from rolemesh.agent.waiting import Waiting
from rolemesh.config.settings import NodeSettings
from rolemesh.llama.memory import MemoryNeed
from rolemesh.names import InstanceName, ModelId

_COMING: Final = frozenset({InstanceState.STARTING, InstanceState.LOADING})
LOOK_AGAIN_S: Final = 1.0
"""How often memory is looked at while others leave: some may be free before they are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What placement would do with a model now, and why: every site, the best first."""

    model_id: ModelId
    placed: Placed | Refused
    sites: tuple[Site, ...]
    need: MemoryNeed | None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the element of `plans` of GET /v1/node/plan."""
        placed = self.placed
        tree: dict[str, Any] = {
            "model_id": self.model_id,
            "need_mib": None if self.need is None else self.need.on_each(1) >> 20,
            "problem": self.problem,
            "sites": [site.to_json() for site in self.sites],
        }
        if isinstance(placed, Refused):
            return {
                **tree,
                "outcome": "refused",
                "reason": str(placed),
                "may_pass": placed.may_pass,
            }
        return {
            **tree,
            "outcome": "joins" if placed.joins else "placed",
            "instance": placed.instance,
            "devices": list(placed.devices),
            "evicts": list(placed.evicts),
        }


class Placing:
    """Answers where models go; `settings` and `observation` are those in force."""

    def __init__(self, *, settings: NodeSettings, waiting: Waiting, memory: FleetMemory) -> None:
        self.settings = settings
        self.observation: HostObservation | None = None
        self._waiting = waiting
        self._memory = memory
        self._clock = asyncio.get_running_loop().time

    def observe(
        self, observation: HostObservation | None, instances: Iterable[ManagedInstance]
    ) -> None:
        """Take in what was seen of the machine while these instances were there."""
        self.observation = observation
        if observation is None:
            return
        tenants = [
            Tenant(view=self.view(managed), pids=managed.pids)
            for managed in instances
            if not managed.is_empty or managed.unit_active is ActiveState.ACTIVATING
        ]
        self._memory.observe(observation.inventory, tenants)
        self._memory.observe_host(observation.host, tenants)

    def problem_of(self, model_id: ModelId) -> str:
        """Return what is known to keep a model from being loaded; "" if nothing is."""
        return self.observation.model_problems.of(model_id) if self.observation else ""

    def need_of(self, model_id: ModelId) -> MemoryNeed | None:
        """Return the memory that a model needs, None where that cannot be told."""
        return self.observation.model_problems.need_of(model_id) if self.observation else None

    def view(self, managed: ManagedInstance) -> PlacementView:
        """Return an instance as placement sees it."""
        held = self._memory.held(managed.desired.name)
        return managed.view(self._waiting.counts, self.need_of, held)

    def has_looked_at(self, model_id: ModelId) -> bool:
        """Tell whether the model's files were looked at as the settings now have it."""
        if self.observation is None:
            return True
        checked = self.observation.model_problems.checked
        return checked is None or checked.get(model_id) == self.settings.models.get(model_id)

    def place(
        self, model_id: ModelId, instances: Iterable[ManagedInstance], *, patient: bool = False
    ) -> Placed | Refused:
        """Return where a model is to run; `patient`: it displaces nobody."""
        views = [self.view(managed) for managed in instances]
        wanted, around = self._wanted(model_id), self._surroundings()
        if not patient:
            return place_model(wanted, views, around, now=self._clock())
        held = [_untouchable(view) for view in views]
        return place_model(wanted, held, around, now=self._clock())

    def place_on(
        self, model_id: ModelId, name: InstanceName, instances: Iterable[ManagedInstance]
    ) -> Placed | Refused:
        """Return what it takes to run a model on one instance, for somebody who insists on it.

        What is busy there finishes its requests and takes no more.
        """
        views = [self.view(managed) for managed in instances]
        wanted = replace(self._wanted(model_id), waited_s=math.inf)
        around = replace(self._surroundings(), min_resident_s=0.0)
        sites = find_sites(wanted, views, around, now=self._clock())
        here = [site for site in sites if site.instance == name]
        best = best_first(here, model_id, views)
        if best:
            return Placed(instance=name, devices=best[0].devices, evicts=best[0].evicts)
        reasons = {site.instance: site.reason for site in here}
        return Refused(reasons=reasons, may_pass=any(site.may_pass for site in here))

    def plan(self, model_id: ModelId, instances: Iterable[ManagedInstance]) -> Plan:
        """Return what `place` says, with everything that it weighed."""
        views = [self.view(managed) for managed in instances]
        wanted, around, now = self._wanted(model_id), self._surroundings(), self._clock()
        sites = find_sites(wanted, views, around, now=now)
        possible = best_first(sites, model_id, views)
        return Plan(
            model_id=model_id,
            placed=place_model(wanted, views, around, now=now),
            sites=(*possible, *(site for site in sites if site.reason)),
            need=wanted.need,
            problem=self.problem_of(model_id),
        )

    async def until_room(
        self,
        model_id: ModelId,
        managed: ManagedInstance,
        others: Iterable[ManagedInstance],
        told: Callable[[str], None],
    ) -> None:
        """Return once there is room for the model.

        That is when its memory is free, or, where that cannot be told, when those have stopped that
        leave for it. `told` hears what is waited for, "" when that is over. Raises NodeError with
        the figures when the memory does not become free.
        """
        need, devices = self.need_of(model_id), managed.devices
        required = None if need is None else share(need, devices)
        neighbours = [
            each
            for each in others
            if each is not managed and set(self.view(each).places) & set(devices)
        ]
        while leaving := [each for each in neighbours if self.view(each).is_leaving]:
            if required is None:
                leaving = [each for each in leaving if each.desired.name in managed.evicts]
            elif await self._memory.is_free(devices, required + self._promised(neighbours)):
                leaving = []
            if not leaving:
                break
            told(f"waits for {', '.join(each.desired.name for each in leaving)} to stop")
            with contextlib.suppress(TimeoutError):
                await self._waiting.until_change(self._clock() + LOOK_AGAIN_S)
        if required is not None:
            await self._memory.until_free(devices, required, told=told)
        told("")

    def _promised(self, neighbours: Iterable[ManagedInstance]) -> int:
        """Return the memory that those take who have begun to load, and may not have it yet."""
        views = [self.view(each) for each in neighbours if each.instance.state in _COMING]
        return sum(share(view.need, view.places) for view in views)

    def _wanted(self, model_id: ModelId) -> Wanted:
        model = self.settings.models.get(model_id)
        return Wanted(
            model_id=model_id,
            need=self.need_of(model_id),
            gpus=None if model is None else model.gpus,
            waited_s=self._waiting.waited_s(model_id),
        )

    def _surroundings(self) -> Surroundings:
        return self._memory.surroundings(
            self.observation, self.settings.policy, may_share=not self.settings.instances
        )


def _untouchable(view: PlacementView) -> PlacementView:
    """Return an instance as those see it who displace nobody."""
    return view if view.is_empty else replace(view, pinned=True, assigned=None)
