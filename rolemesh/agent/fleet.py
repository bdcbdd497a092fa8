"""The fleet as requests and operators use it: slots of a loaded model, loads, unloads, pins."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from rolemesh.agent import refusals
from rolemesh.agent.desired import DesiredInstance
from rolemesh.agent.fleet_settings import FollowingFleet
from rolemesh.agent.instance import InstanceState, LoadWanted, UnloadWanted
from rolemesh.agent.managed_instance import ManagedInstance
from rolemesh.agent.placement_view import Refused
from rolemesh.agent.placing import Plan
from rolemesh.agent.slots import Lease, Use
from rolemesh.errors import UnknownAlias, UnknownInstance
from rolemesh.names import InstanceName, ModelId


class Fleet(FollowingFleet):
    """Leases and orders; nothing is displaced for a model that is known not to load.

    Two processes of an agent may have a fleet of the same units, when one takes over from the other:
    that one is held, and gives out no more; what it uses still, it tells at each `on_less_use`.
    """

    _is_held = False
    _is_retired = False
    _elsewhere: Mapping[InstanceName, Use] = MappingProxyType({})
    on_less_use: Callable[[], None] = staticmethod(lambda: None)

    # -- between two processes of this agent -----------------------------------------------

    def hold(self) -> None:
        """Give out no slots, and do nothing to units, as another process is about to."""
        self._is_held = True
        self._driver.hold()

    def go_on(self) -> None:
        """Go on after `hold`, as that other process has not come."""
        self._is_held = False
        self._driver.go_on()
        self._settle()

    def retire(self) -> None:
        """Leave all to the other process, but for the requests that have slots here."""
        self.end()
        self._driver.abandon()
        self._is_retired = True
        self._waiting.wake()

    def in_use(self) -> dict[InstanceName, Use]:
        """Return what requests use, here and in an earlier process."""
        return {
            name: Use(managed.slots.held, managed.slots.requests)
            for name, managed in self._managed.items()
            if managed.slots.requests
        }

    def used_elsewhere(self, uses: Mapping[InstanceName, Use]) -> None:
        """Learn what requests use that end in an earlier process."""
        self._elsewhere = uses
        for name, managed in tuple(self._managed.items()):
            before, managed.slots.others = managed.slots.others, uses.get(name, Use())
            if before != managed.slots.others:
                self._lease_over(managed)

    def _manage(self, desired: DesiredInstance) -> ManagedInstance:
        managed = super()._manage(desired)
        managed.slots.others = self._elsewhere.get(desired.name, Use())
        return managed

    # -- what requests and operators want --------------------------------------------------

    async def lease(
        self, model_id: ModelId, *, cost: int, wait_s: float, prefer: InstanceName | None = None
    ) -> Lease:
        """Hold slots of a ready instance, `prefer` if that can, loading the model where needed.

        Raises UnknownAlias for a model not configured; SlotsBusy at once when it is loaded but no
        slot is free; Unavailable when it is not ready within `wait_s`, cannot be, or its load
        failed. All who wait for a model join one load.
        """
        await self._until_ready(model_id, wait_s)
        lease = self.lease_now(model_id, cost=cost, prefer=prefer)
        assert lease is not None
        return lease

    def lease_now(
        self, model_id: ModelId, *, cost: int, prefer: InstanceName | None = None
    ) -> Lease | None:
        """Do as `lease` does if the model is ready; None if it has to be waited for."""
        chosen, is_ready = None, False
        for managed in self._managed.values():
            if managed.serves(model_id):
                is_ready = True
                if managed.slots.fits(cost) and managed.suits_better_than(chosen, prefer):
                    chosen = managed
        if self._is_held:
            raise refusals.slots_busy(model_id)
        if not is_ready:
            return None
        if chosen is None:
            raise refusals.slots_busy(model_id)
        chosen.last_used = self._clock()
        return chosen.slots.lease(
            chosen.desired.name, model_id, cost, lambda: self._lease_over(chosen)
        )

    def _lease_over(self, managed: ManagedInstance) -> None:
        self._request_ended(managed)
        if self._is_held:
            self.on_less_use()

    async def ensure_ready(self, model_id: ModelId, *, wait_s: float) -> tuple[InstanceName, ...]:
        """Load the model unless it is; return the instances that serve it. Errors as in `lease`."""
        await self._until_ready(model_id, wait_s)
        return tuple(name for name, managed in self._managed.items() if managed.serves(model_id))

    async def until_change(self, wait_s: float) -> None:
        """Return at the next change of any instance; raises TimeoutError after `wait_s`."""
        await self._waiting.until_change(self._clock() + wait_s)

    def unload(self, model_id: ModelId) -> tuple[InstanceName, ...]:
        """Drain and stop every instance of the model; return which. Raises UnknownAlias."""
        self._check_known(model_id)
        running = [
            managed
            for managed in self._managed.values()
            if managed.instance.model_id == model_id
            and not managed.is_empty
            and managed.bound_for == model_id
        ]
        for managed in running:
            self._dispatch(managed, UnloadWanted())
        return tuple(managed.desired.name for managed in running)

    def unload_instance(self, name: InstanceName) -> bool:
        """Drain and stop what an instance runs; tell whether it ran anything."""
        managed = self._named(name)
        is_running = not managed.is_empty
        self._dispatch(managed, UnloadWanted())
        return is_running

    def load_on(self, model_id: ModelId, name: InstanceName) -> None:
        """Have one instance run a model once it has finished what it does; returns at once.

        Raises UnknownAlias, UnknownInstance, and Unavailable where it cannot.
        """
        self._check_known(model_id)
        managed = self._named(name)
        if managed.is_bound_for(model_id):
            return
        if managed.state is InstanceState.DRAINING and managed.bound_for == model_id:
            self._dispatch(managed, LoadWanted(model_id=model_id))  # it stays
            return
        problem = self._placing.problem_of(model_id)
        if problem:
            raise refusals.unusable(model_id, problem)
        placed = self._placing.place_on(model_id, name, self._managed.values())
        if isinstance(placed, Refused):
            raise refusals.not_ready(model_id, placed)
        self._load(model_id, placed)

    def devices_in_use(self) -> frozenset[str]:
        """Return the GPUs on which something runs, or is about to."""
        running = [managed for managed in self._managed.values() if not managed.is_empty]
        return frozenset(
            device for managed in running for device in self._placing.view(managed).devices
        )

    def pin(self, name: InstanceName, *, pinned: bool) -> None:
        """Never unload what an instance runs for another model, or do; whatever settings say."""
        managed = self._named(name)
        self._choices.pin(name, pinned=pinned)
        managed.pinned = pinned
        self._settle()

    def drain(self, name: InstanceName, *, drained: bool) -> None:
        """Have an instance finish its requests, unload and get nothing more; or serve again."""
        managed = self._named(name)
        self._choices.drain(name, drained=drained)
        managed.is_drained = drained
        if drained:
            self._dispatch(managed, UnloadWanted(why="drained by an operator"))
        else:
            managed.is_due = managed.desired.model is not None
        self._settle()

    def _named(self, name: InstanceName) -> ManagedInstance:
        managed = self._managed.get(name)
        if managed is None:
            raise UnknownInstance(name, tuple(self._managed))
        return managed

    async def _until_ready(self, model_id: ModelId, wait_s: float) -> None:
        # 1. ready: return, without a suspension between this finding and the caller's lease
        # 2. cannot be loaded, failed since we joined, or no instance can ever take it: raise
        # 3. on its way, or every instance busy: wait for any change, then look again
        joined = self._failures.serial
        deadline = self._clock() + wait_s
        with self._waiting.join(model_id):
            self._tick_soon()
            self._sought.pop(model_id, None)
            while True:
                self._check_known(model_id)
                if self._is_retired:
                    raise refusals.slots_busy(model_id)
                if any(managed.serves(model_id) for managed in self._managed.values()):
                    return
                self._raise_unloadable(model_id, joined)
                if model_id not in self._sought:
                    self._seek_instance(model_id)
                refused = self._sought.get(model_id)
                if refused is not None and not refused.may_pass:
                    raise refusals.not_ready(model_id, refused)
                try:
                    await self._waiting.until_change(deadline)
                except TimeoutError as err:
                    raise refusals.not_ready(model_id, refused) from err

    def _check_known(self, model_id: ModelId) -> None:
        if model_id not in self._settings.models:
            raise UnknownAlias(model_id, tuple(self._settings.models))

    def _raise_unloadable(self, model_id: ModelId, joined: int) -> None:
        problem = self._placing.problem_of(model_id)
        if problem:
            raise refusals.unusable(model_id, problem)
        if any(managed.is_bound_for(model_id) for managed in self._managed.values()):
            return  # what failed elsewhere is not the end of it
        failure, now = self._failures.of(model_id), self._clock()
        if failure is not None and (failure.serial > joined or failure.retry_at > now):
            raise refusals.failed(model_id, failure, now=now)

    def plan(self, model_id: ModelId) -> Plan:
        """Return what placement would do with a model now, and why. Raises UnknownAlias."""
        self._check_known(model_id)
        return self._placing.plan(model_id, self._managed.values())
