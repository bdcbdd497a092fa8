"""The effects of the fleet's decisions: tells units what to run, starts and stops them.

One effect at a time for each instance. A stop overtakes a start that waits for its unit; all else
waits for its predecessor. Outcomes come back as events of the instance.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from rolemesh.agent.instance import (
    ActionFailed,
    InstanceEvent,
    StuckProcesses,
    UnitObserved,
    UnitStopped,
)
from rolemesh.agent.instance_files import InstanceFiles
from rolemesh.agent.unit_control import ActiveState, UnitControl, UnitStatus
from rolemesh.errors import NodeError, UnitFailed, UnitStuck
from rolemesh.names import InstanceName, ModelId
from rolemesh.runtime.tasks import TaskScope

logger = logging.getLogger(__name__)

_OVER: Final = frozenset({ActiveState.INACTIVE, ActiveState.FAILED})

Effect = Callable[[], Coroutine[Any, Any, InstanceEvent]]
Report = Callable[[InstanceName, InstanceEvent], None]
Room = Callable[[], Coroutine[Any, Any, None]]


def observed(status: UnitStatus, model_id: ModelId | None) -> UnitObserved:
    """Return a unit's status as an event of its instance."""
    return UnitObserved(
        active=status.active,
        model_id=model_id,
        status_text=status.status_text,
        result=status.result,
        restarts=status.restarts,
        stuck_pids=status.stuck_pids,
    )


class UnitDriver:
    """Performs starts and stops as tasks of `scope`; `report` takes their outcomes."""

    def __init__(self, *, control: UnitControl, files: InstanceFiles, scope: TaskScope) -> None:
        self._control = control
        self._files = files
        self._scope = scope
        self._starts: dict[InstanceName, asyncio.Task[None]] = {}
        self._latest: dict[InstanceName, asyncio.Task[None]] = {}
        self._may_act = asyncio.Event()
        self._may_act.set()

    def hold(self) -> None:
        """Do nothing more to units or their files until `go_on`; what was asked of systemd goes on."""
        self._may_act.clear()

    def go_on(self) -> None:
        """Go on where `hold` interrupted it."""
        self._may_act.set()

    def abandon(self) -> None:
        """Do nothing more, and report nothing; units go on with what they were told."""
        self.hold()
        for task in self._latest.values():
            task.cancel()

    def start(
        self,
        instance: InstanceName,
        model_id: ModelId,
        devices: tuple[str, ...],
        *,
        room: Room,
        report: Report,
    ) -> None:
        """Run `model_id` on the instance; reports how its unit then stands, or ActionFailed.

        Once `room` returns the memory is there; the NodeError that it may raise is the reason of
        the failure.
        """

        async def effect() -> InstanceEvent:
            await self._end_others(instance)
            await room()
            await self._end_others(instance)
            await self._may_act.wait()
            self._files.write_parameters(instance, model_id, devices)
            await self._control.reset_failed(instance)
            await self._control.start(instance)
            return observed(self._control.statuses()[instance], model_id)

        self._perform(instance, "start", effect, report)
        self._starts[instance] = self._latest[instance]

    async def _end_others(self, instance: InstanceName) -> None:
        """Stop a unit that somebody else has started: a start would leave it with its model."""
        await self._may_act.wait()
        before = self._control.statuses().get(instance)
        if before is not None and before.active not in _OVER:
            await self._control.stop(instance)

    def stop(self, instance: InstanceName, report: Report) -> None:
        """Stop the instance's unit; reports UnitStopped, or ActionFailed."""

        async def effect() -> InstanceEvent:
            await self._may_act.wait()
            await self._control.stop(instance)
            await self._may_act.wait()
            self._files.remove_parameters(instance)
            return UnitStopped()

        self._perform(instance, "stop", effect, report)

    def _perform(
        self,
        instance: InstanceName,
        verb: str,
        effect: Effect,
        report: Report,
    ) -> None:
        before = self._latest.get(instance)
        start = self._starts.pop(instance, None)
        if start is not None:
            start.cancel()  # the unit goes on starting; its outcome no longer counts
        self._latest[instance] = self._scope.start(
            self._run(instance, effect, report, before), name=f"{verb} {instance}"
        )

    async def _run(
        self,
        instance: InstanceName,
        effect: Effect,
        report: Report,
        before: asyncio.Task[None] | None,
    ) -> None:
        if before is not None and not before.done():
            await asyncio.wait((before,))
        try:
            event = await effect()
        except UnitFailed as err:
            event = ActionFailed(reason=err.status_text or f"its unit failed ({err.result})")
        except UnitStuck as err:
            event = StuckProcesses(reason=str(err))
        except NodeError as err:
            event = ActionFailed(reason=str(err))
        report(instance, event)
