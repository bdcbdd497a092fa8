"""One unit of the child supervisor: its state, its process, its timers and those who wait for it."""

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

from rolemesh.agent import child_unit
from rolemesh.agent.child_events import (
    Action,
    Cleared,
    DeadlinePassed,
    Event,
    Exited,
    Signal,
    Spawn,
    SpawnFailed,
    StartWanted,
    StopWanted,
)
from rolemesh.agent.child_unit import ChildUnit, Limits, Phase, StartOutcome
from rolemesh.agent.process_group import Leftover, kill_group
from rolemesh.agent.unit_control import ActiveState, UnitStatus
from rolemesh.errors import NodeError, UnitFailed, UnitStuck
from rolemesh.names import InstanceName
from rolemesh.runtime.child_process import ChildProcess

logger = logging.getLogger(__name__)

FIRST_LOOK_S: Final = 0.01
LONGEST_LOOK_S: Final = 3.0
"""How often it is looked whether what is left of a unit is gone."""

_ACTIVE_STATES: Final[Mapping[Phase, ActiveState]] = {
    Phase.INACTIVE: ActiveState.INACTIVE,
    Phase.STARTING: ActiveState.ACTIVATING,
    Phase.RUNNING: ActiveState.ACTIVE,
    Phase.STOPPING: ActiveState.DEACTIVATING,
    Phase.FAILING: ActiveState.DEACTIVATING,
    Phase.KILLED: ActiveState.DEACTIVATING,
    Phase.RESTARTING: ActiveState.ACTIVATING,
    Phase.FAILED: ActiveState.FAILED,
}


@dataclass(frozen=True, slots=True)
class _Waiter:
    """Somebody who waits for what becomes of one attempt."""

    attempt: int
    future: asyncio.Future[None]


class SupervisedUnit:
    """One unit: its state, its process, its timer and those who wait for it."""

    def __init__(
        self,
        *,
        instance: InstanceName,
        limits: Limits,
        spawn: Callable[[Callable[[int], None]], ChildProcess],
        hear: Callable[[], None],
        changed: Callable[[UnitStatus], None],
    ) -> None:
        self._instance = instance
        self._limits = limits
        self._spawn = spawn
        self._hear = hear
        self._changed = changed
        self._state = ChildUnit()
        self._child: ChildProcess | None = None
        self._left: tuple[Leftover, ...] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._start_waiters: list[_Waiter] = []
        self._stop_waiters: list[_Waiter] = []
        self._told = self.status()

    @property
    def main_pid(self) -> int | None:
        """The pid of the main process, None while there is none."""
        return self._child.pid if self._child else None

    def status(self) -> UnitStatus:
        """Return the unit as systemd would show it."""
        return UnitStatus(
            instance=self._instance,
            active=_ACTIVE_STATES[self._state.phase],
            main_pid=self.main_pid,
            status_text=self._state.status_text,
            result=self._state.result,
            restarts=self._state.restarts,
            stuck_pids=self._stuck_pids(),
        )

    def _stuck_pids(self) -> tuple[int, ...]:
        if not self._state.stuck:
            return ()
        main = (self._child.pid,) if self._child is not None else ()
        return (*main, *(process.pid for process in self._left))

    def close(self) -> None:
        """Look no more for what is left of it."""
        for timer in (self._timer, self._look_timer):
            if timer is not None:
                timer.cancel()

    def want_start(self) -> asyncio.Future[None]:
        """Start the unit; the future ends with that start."""
        self.take(StartWanted())
        return self._wait(self._start_waiters, child_unit.awaited_attempt(self._state))

    def want_stop(self) -> asyncio.Future[None]:
        """Stop the unit; the future ends with its processes, or with UnitStuck."""
        self.take(StopWanted())
        return self._wait(self._stop_waiters, self._state.attempt)

    def _wait(self, waiters: list[_Waiter], attempt: int) -> asyncio.Future[None]:
        waiter = _Waiter(attempt, asyncio.get_running_loop().create_future())
        waiters.append(waiter)
        self._settle_waiters(self._state)
        return waiter.future

    def take(self, event: Event) -> None:
        """Let `event` happen to the unit."""
        before = self._state
        now = asyncio.get_running_loop().time()
        self._state, actions = child_unit.step(before, event, now=now, limits=self._limits)
        if isinstance(event, Exited):
            self._child = None
        for action in actions:
            self._perform(action)
        self._arm_timer()
        if self._state.phase is not before.phase:
            self._log_phase()
        self._settle_waiters(before)
        self._tell()

    def _tell(self) -> None:
        """Tell of the status if it has changed since."""
        status = self.status()
        if status != self._told:
            self._told = status
            self._changed(status)

    def _perform(self, action: Action) -> None:
        match action:
            case Signal(number=number):
                if self._child is not None:
                    self._child.send_signal(number)
                    # One that somebody has stopped (SIGSTOP) sees the signal only when it goes on.
                    self._child.send_signal(signal.SIGCONT)
            case Spawn():
                try:
                    self._child = self._spawn(self._exited)
                except OSError as err:
                    self.take(SpawnFailed(reason=f"cannot be started: {err}"))

    def _exited(self, status: int) -> None:
        if self._child is not None:
            self._left = kill_group(self._child.pid)
        self.take(Exited(status=status, left=bool(self._left)))
        if self._left:
            self._look_later(FIRST_LOOK_S)
        elif self._state.stuck:
            self.take(Cleared())

    def _look_later(self, after_s: float) -> None:
        """See after a while whether what is left is gone; less often the longer it takes."""

        def look() -> None:
            self._left = tuple(each for each in self._left if each.is_there())
            if self._left:
                self._tell()
                self._look_later(min(2 * after_s, LONGEST_LOOK_S))
            else:
                self.take(Cleared())

        self._look_timer = asyncio.get_running_loop().call_later(after_s, look)

    def _arm_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._state.due < inf:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._state.due, self._time_passed)

    def _time_passed(self) -> None:
        # After a standstill of our own, what was said in time lies here unread.
        self._hear()
        self.take(DeadlinePassed())

    def _settle_waiters(self, before: ChildUnit) -> None:
        state = self._state
        for waiter in tuple(self._start_waiters):
            outcome = child_unit.start_outcome(state, waiter.attempt)
            if outcome is not StartOutcome.PENDING:
                self._start_waiters.remove(waiter)
                _settle(waiter.future, self._start_error(outcome, before))
        for waiter in tuple(self._stop_waiters):
            if state.attempt != waiter.attempt or not child_unit.has_process(state):
                self._stop_waiters.remove(waiter)
                stuck = UnitStuck(self._instance, self._stuck_pids()) if state.stuck else None
                _settle(waiter.future, stuck)

    def _start_error(self, outcome: StartOutcome, before: ChildUnit) -> UnitFailed | None:
        if outcome is StartOutcome.DONE:
            return None
        # When the next attempt has begun already, the failed one is the state before.
        failed = before if self._state.result == child_unit.SUCCESS else self._state
        result, text = failed.result, failed.status_text
        if outcome is StartOutcome.CANCELED:
            result, text = child_unit.CANCELED, "stopped before it was ready"
        elif self._state.stuck:
            text = str(UnitStuck(self._instance, self._stuck_pids()))
        return UnitFailed(self._instance, result=result, status_text=text)

    def _log_phase(self) -> None:
        state = self._state
        match state.phase:
            case Phase.FAILING:
                logger.warning("%s: %s; killing it", self._instance, state.result)
            case Phase.RESTARTING:
                pause_s = state.deadline - asyncio.get_running_loop().time()
                logger.warning(
                    "%s failed (%s): %s; restart in %.1f s",
                    *(self._instance, state.result, state.status_text, pause_s),
                )
            case Phase.FAILED:
                stuck = UnitStuck(self._instance, self._stuck_pids()) if state.stuck else None
                text = stuck or state.status_text
                logger.error("%s failed (%s): %s", self._instance, state.result, text)
            case Phase.KILLED:
                logger.debug("%s: waiting for its processes to end", self._instance)
            case Phase.INACTIVE | Phase.STARTING | Phase.RUNNING | Phase.STOPPING:
                logger.info("%s is %s", self._instance, state.phase.value)


def _settle(future: asyncio.Future[None], error: NodeError | None) -> None:
    if future.done():
        return  # whoever waited was cancelled
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
