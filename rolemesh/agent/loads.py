"""Loads that operators ask for: where they say, and with what is said meanwhile."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from rolemesh.agent import refusals
from rolemesh.agent.fleet import Fleet
from rolemesh.agent.fleet_snapshot import InstanceSnapshot
from rolemesh.agent.instance import InstanceState
from rolemesh.agent.report import NodeView, report_models
from rolemesh.errors import RoleMeshError, Unavailable
from rolemesh.names import InstanceName, ModelId
from rolemesh.relay.application import ClientLeft, LineStream
from rolemesh.relay.replies import Reply, json_reply
from rolemesh.runtime.tasks import TaskScope

LOOK_S: Final = 0.2
"""How often a load is looked at by whoever tells of it."""

ECHO_S: Final = 1.0
"""How long nothing is said: who listens learns by it that we live, and we that he has not left."""

Instances = tuple[InstanceName, ...]


class Loads:
    """Carries them out; `view` gives the node as it is now."""

    def __init__(self, fleet: Fleet, view: Callable[[], NodeView]) -> None:
        self._fleet = fleet
        self._view = view
        self._clock = asyncio.get_running_loop().time

    async def load(
        self, model_id: ModelId, instance: InstanceName | None, *, wait_s: float
    ) -> dict[str, Any]:
        """Load a model, on an instance if one is named; return what a caller is told.

        Raises UnknownAlias, UnknownInstance, and Unavailable when it is not ready in time, cannot
        be, or failed. A load that has begun goes on.
        """
        if instance is None:
            instances = await self._fleet.ensure_ready(model_id, wait_s=wait_s)
        else:
            instances = await self._load_on(model_id, instance, self._clock() + wait_s)
        return {"model_id": model_id, "state": "ready", "instances": list(instances)}

    async def follow(
        self,
        lines: LineStream,
        model_id: ModelId,
        instance: InstanceName | None,
        *,
        wait_s: float,
    ) -> Reply | None:
        """Do as `load` does and send a line whenever there is news; raises ClientLeft, too.

        Return the reply where there was nothing to tell before the end.
        """
        has_left = False
        async with TaskScope() as scope:
            work = self._outcome(model_id, instance, wait_s)
            load = scope.start(work, name=f"load {model_id} for an operator")
            try:
                await self._tell(lines, load, model_id, instance)
            except ClientLeft:
                has_left = True
        if has_left:
            raise ClientLeft
        outcome = load.result()
        if isinstance(outcome, RoleMeshError):
            raise outcome
        if not lines.response.prepared:
            return json_reply(outcome)
        await lines.send_object(outcome)
        return None

    async def _outcome(
        self, model_id: ModelId, instance: InstanceName | None, wait_s: float
    ) -> dict[str, Any] | RoleMeshError:
        # Returned: raised in a task it would come out of the scope as a group of errors.
        try:
            return await self.load(model_id, instance, wait_s=wait_s)
        except RoleMeshError as err:
            return err

    async def _tell(
        self,
        lines: LineStream,
        load: asyncio.Task[Any],
        model_id: ModelId,
        instance: InstanceName | None,
    ) -> None:
        told, told_at = dict[str, Any](), self._clock()
        while not (await asyncio.wait({load}, timeout=LOOK_S))[0]:
            line = load_line(self._view(), model_id, instance)
            if line != told or self._clock() - told_at > ECHO_S:
                told, told_at = line, self._clock()
                await lines.send_object(line)

    # -- on one instance -------------------------------------------------------------------

    async def _load_on(self, model_id: ModelId, name: InstanceName, deadline: float) -> Instances:
        await self._begin_on(model_id, name, deadline)
        while True:
            found = self._snapshot(name)
            if found is None or not found.view.is_bound_for(model_id):
                raise self._why_not(model_id, name)
            if found.view.state is InstanceState.READY:
                return (name,)
            try:
                await self._fleet.until_change(deadline - self._clock())
            except TimeoutError as err:
                raise refusals.not_ready(model_id, None) from err

    async def _begin_on(self, model_id: ModelId, name: InstanceName, deadline: float) -> None:
        """Have it begin as soon as what runs there can leave."""
        while True:
            try:
                self._fleet.load_on(model_id, name)
            except Unavailable as refusal:
                if refusal.reason != refusals.NO_ROOM:
                    raise
                try:
                    await self._fleet.until_change(deadline - self._clock())
                except TimeoutError:
                    raise refusal from None
            else:
                return

    def _snapshot(self, name: InstanceName) -> InstanceSnapshot | None:
        instances = self._fleet.snapshot().instances
        return next((each for each in instances if each.view.name == name), None)

    def _why_not(self, model_id: ModelId, name: InstanceName) -> Unavailable:
        failure = self._fleet.snapshot().failures.get(model_id)
        if failure is not None:
            return refusals.failed(model_id, failure, now=self._clock())
        msg = f"{name} was given to another model, or emptied, before '{model_id}' was ready"
        return Unavailable(msg, reason="displaced", retry_after_s=refusals.RETRY_S)


def load_line(view: NodeView, model_id: ModelId, instance: InstanceName | None) -> dict[str, Any]:
    """Return how far a load is.

    `state` is that of the instance it is bound for, "waiting" while there is none; `progress` 0..1
    where that is known; `reason` what it waits for.
    """
    bound = [
        each.view
        for each in view.fleet.instances
        if each.view.is_bound_for(model_id) and instance in (None, each.view.name)
    ]
    line: dict[str, Any] = {"model_id": model_id, "progress": None, "reason": ""}
    if not bound:
        refused = view.fleet.refused.get(model_id)
        return {**line, "state": "waiting", "instance": instance, "reason": str(refused or "")}
    here = bound[0]
    if here.is_leaving:
        line["reason"] = f"{here.model_id} leaves first"
    else:
        reports = {report.model_id: report for report in report_models(view)}
        line["progress"] = reports[model_id].progress
    return {**line, "state": here.state.value, "instance": here.name}
