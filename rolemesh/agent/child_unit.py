"""The state machine of one unit of the child supervisor, with systemd's semantics; pure.

    INACTIVE | FAILED --start--> STARTING --READY=1--> RUNNING
    STARTING | RUNNING --stop--> STOPPING --exit--> INACTIVE (or FAILED)
    STARTING --too slow--> FAILING        RUNNING --watchdog--> FAILING --exit--> RESTARTING
    STARTING | RUNNING --exit with a failure--> RESTARTING --backoff--> STARTING
    ... --exit with 78--> FAILED: restarting cannot help        RESTARTING --stop--> INACTIVE
    ... --exit, processes left--> KILLED --they are gone--> as after the exit
    STOPPING | FAILING --too slow, SIGKILL--> KILLED --too slow--> FAILED, and stuck

Time is a number of monotonic seconds that each event comes with.
"""

import signal
from dataclasses import dataclass, replace
from enum import Enum
from math import inf
from typing import Final

from rolemesh.agent.child_events import (
    Action,
    Cleared,
    DeadlinePassed,
    Event,
    Exited,
    Notified,
    ResetWanted,
    Signal,
    Spawn,
    SpawnFailed,
    StartWanted,
    StopWanted,
)

SUCCESS: Final = "success"
CANCELED: Final = "canceled"
PREVENT_RESTART_STATUS: Final = 78
# What systemd counts as a clean end besides status 0.
_CLEAN_SIGNALS: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE})


class Phase(Enum):
    """Where a unit is in its life."""

    INACTIVE = "inactive"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILING = "failing"
    """Being killed because it was too slow or silent."""
    KILLED = "killed"
    """Ended or killed; processes of it are left."""
    RESTARTING = "restarting"
    """Waiting for the next automatic start; no process."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """systemd's settings of the unit, in seconds; a restart waits twice as long as the one before.

    `settled_after_s` of RUNNING forget what came before.
    """

    start_timeout_s: float = 90.0
    stop_timeout_s: float = 15.0
    watchdog_s: float = 10.0
    first_backoff_s: float = 0.1
    longest_backoff_s: float = 30.0
    settled_after_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildUnit:
    """One unit. `attempt` counts its starts; `result` is systemd's Result of the last one.

    `deadline` ends the phase (inf: nothing does), `watchdog_due` when the next WATCHDOG=1 is due.
    `stop_wanted` and `start_wanted` say what shall follow the end of the process under way.
    `exit_status` is that of the main process, None while it has not ended. `stuck`: processes of it
    are left that SIGKILL has not ended in time.
    """

    phase: Phase = Phase.INACTIVE
    attempt: int = 0
    restarts: int = 0
    result: str = SUCCESS
    status_text: str = ""
    deadline: float = inf
    watchdog_due: float = inf
    running_since: float = inf
    next_backoff_s: float = 0.0
    stop_wanted: bool = False
    start_wanted: bool = False
    exit_status: int | None = None
    stuck: bool = False

    @property
    def due(self) -> float:
        """When DeadlinePassed is due, inf if never."""
        return min(self.deadline, self.watchdog_due)


Step = tuple[ChildUnit, tuple[Action, ...]]


class StartOutcome(Enum):
    """How a start that somebody waits for stands."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    CANCELED = "canceled"


def step(unit: ChildUnit, event: Event, *, now: float, limits: Limits) -> Step:
    """Return what the unit becomes by `event` and what is to be done about it."""
    at = _Moment(now=now, limits=limits)
    match event:
        case StartWanted():
            return _on_start_wanted(unit, at)
        case StopWanted():
            return _on_stop_wanted(unit, at)
        case ResetWanted():
            return _on_reset_wanted(unit), ()
        case Notified():
            return _on_notified(unit, event, at)
        case Exited():
            return _on_exited(unit, event, at)
        case _:
            return _step_by_itself(unit, event, at)


def _step_by_itself(
    unit: ChildUnit, event: Cleared | SpawnFailed | DeadlinePassed, at: "_Moment"
) -> Step:
    match event:
        case Cleared():
            return _on_cleared(unit, at)
        case SpawnFailed(reason=reason):
            failed = replace(unit, result="resources", status_text=reason)
            return _restart_later(failed, at), ()
        case DeadlinePassed():
            return _on_deadline(unit, at) if at.now >= unit.due else (unit, ())


def awaited_attempt(unit: ChildUnit) -> int:
    """Return the attempt that decides a start wanted just now (StartWanted was taken)."""
    return unit.attempt + 1 if unit.start_wanted else unit.attempt


def start_outcome(unit: ChildUnit, attempt: int) -> StartOutcome:
    """Tell how the start that waits for `attempt` stands."""
    if unit.attempt != attempt:
        pending = unit.attempt < attempt and unit.start_wanted
        given_up = unit.attempt < attempt and not unit.stuck
        overtaken = StartOutcome.CANCELED if given_up else StartOutcome.FAILED
        return StartOutcome.PENDING if pending else overtaken
    match unit.phase:
        case Phase.RUNNING:
            return StartOutcome.DONE
        case Phase.STARTING:
            return StartOutcome.PENDING
        case Phase.FAILING | Phase.KILLED:
            return StartOutcome.CANCELED if unit.stop_wanted else StartOutcome.PENDING
        case Phase.STOPPING | Phase.INACTIVE:
            return StartOutcome.CANCELED
        case Phase.RESTARTING | Phase.FAILED:
            return StartOutcome.FAILED


def has_process(unit: ChildUnit) -> bool:
    """Tell whether the unit has a process that may yet end."""
    return unit.phase not in {Phase.INACTIVE, Phase.RESTARTING, Phase.FAILED}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """When an event happens, and the limits it happens under."""

    now: float
    limits: Limits


def _on_start_wanted(unit: ChildUnit, at: _Moment) -> Step:
    if unit.stuck:
        return unit, ()  # it would wait for what is left, and in vain
    match unit.phase:
        case Phase.INACTIVE | Phase.FAILED | Phase.RESTARTING:
            # One who asks does not wait for a backoff to pass.
            return _spawn(unit, at, restarts=0)
        case Phase.STARTING | Phase.RUNNING:
            return unit, ()
        case Phase.STOPPING | Phase.FAILING | Phase.KILLED:
            return replace(unit, start_wanted=True, stop_wanted=False), ()


def _on_stop_wanted(unit: ChildUnit, at: _Moment) -> Step:
    match unit.phase:
        case Phase.INACTIVE | Phase.FAILED:
            return unit, ()
        case Phase.RESTARTING:
            return replace(_rest(unit, Phase.INACTIVE), result=SUCCESS), ()
        case Phase.STARTING | Phase.RUNNING:
            stopping = replace(_kill_later(unit, Phase.STOPPING, at), stop_wanted=True)
            return stopping, (Signal(number=signal.SIGTERM),)
        case Phase.STOPPING | Phase.FAILING | Phase.KILLED:
            return replace(unit, stop_wanted=True, start_wanted=False), ()


def _on_reset_wanted(unit: ChildUnit) -> ChildUnit:
    unit = replace(unit, restarts=0, next_backoff_s=0.0)
    if unit.phase is Phase.FAILED and not unit.stuck:
        return replace(unit, phase=Phase.INACTIVE, result=SUCCESS)
    return unit


def _on_notified(unit: ChildUnit, event: Notified, at: _Moment) -> Step:
    if event.status_text is not None:
        unit = replace(unit, status_text=event.status_text)
    if event.extend_s is not None and unit.phase is not Phase.RUNNING:
        # Only ever to more: the timeout is what was promised without a word.
        unit = replace(unit, deadline=max(unit.deadline, at.now + event.extend_s))
    if event.trigger and unit.phase in {Phase.STARTING, Phase.RUNNING}:
        return _fail(unit, "watchdog", signal.SIGABRT, at)
    if event.stopping and unit.phase is Phase.RUNNING:
        return _kill_later(unit, Phase.STOPPING, at), ()
    if event.ready and unit.phase is Phase.STARTING:
        unit = replace(unit, phase=Phase.RUNNING, deadline=inf, running_since=at.now)
        return _feed_watchdog(unit, at), ()
    return (_feed_watchdog(unit, at) if event.alive else unit), ()


def _on_exited(unit: ChildUnit, event: Exited, at: _Moment) -> Step:
    unit = replace(unit, result=_result(unit, event.status), exit_status=event.status)
    if unit.stuck:
        return unit, ()
    if not event.left:
        return _on_end(unit, at)
    if unit.phase is Phase.KILLED:
        return unit, ()
    return _kill_later(unit, Phase.KILLED, at), ()


def _on_cleared(unit: ChildUnit, at: _Moment) -> Step:
    if unit.stuck:
        return replace(unit, stuck=False), ()
    return _on_end(unit, at) if unit.phase is Phase.KILLED else (unit, ())


def _on_end(unit: ChildUnit, at: _Moment) -> Step:
    """Go on from where nothing of the unit runs any more."""
    if unit.start_wanted:
        return _spawn(unit, at, restarts=0)
    if unit.result == SUCCESS:
        return _rest(unit, Phase.INACTIVE), ()
    if unit.stop_wanted or unit.exit_status == PREVENT_RESTART_STATUS:
        return _rest(unit, Phase.FAILED), ()
    return _restart_later(unit, at), ()


def _on_deadline(unit: ChildUnit, at: _Moment) -> Step:
    match unit.phase:
        case Phase.RESTARTING:
            return _spawn(unit, at, restarts=unit.restarts + 1)
        case Phase.STARTING:
            return _fail(unit, "timeout", signal.SIGTERM, at)
        case Phase.RUNNING:
            return _fail(unit, "watchdog", signal.SIGABRT, at)
        case Phase.STOPPING | Phase.FAILING:
            killed = _kill_later(_timed_out(unit), Phase.KILLED, at)
            return killed, (Signal(number=signal.SIGKILL),)
        case Phase.KILLED:
            return replace(_rest(_timed_out(unit), Phase.FAILED), stuck=True), ()
        case Phase.INACTIVE | Phase.FAILED:
            return unit, ()


def _timed_out(unit: ChildUnit) -> ChildUnit:
    return replace(unit, result="timeout") if unit.result == SUCCESS else unit


def _feed_watchdog(unit: ChildUnit, at: _Moment) -> ChildUnit:
    if unit.phase is not Phase.RUNNING:
        return unit
    return replace(unit, watchdog_due=at.now + at.limits.watchdog_s)


def _fail(unit: ChildUnit, result: str, number: signal.Signals, at: _Moment) -> Step:
    failing = replace(_kill_later(unit, Phase.FAILING, at), result=result)
    return failing, (Signal(number=number),)


def _kill_later(unit: ChildUnit, phase: Phase, at: _Moment) -> ChildUnit:
    deadline = at.now + at.limits.stop_timeout_s
    return replace(unit, phase=phase, deadline=deadline, watchdog_due=inf)


def _restart_later(unit: ChildUnit, at: _Moment) -> ChildUnit:
    limits = at.limits
    settled = at.now - unit.running_since >= limits.settled_after_s
    fresh = settled or unit.next_backoff_s == 0.0
    backoff_s = limits.first_backoff_s if fresh else unit.next_backoff_s
    return replace(
        _rest(unit, Phase.RESTARTING),
        deadline=at.now + backoff_s,
        next_backoff_s=min(backoff_s * 2, limits.longest_backoff_s),
    )


def _rest(unit: ChildUnit, phase: Phase) -> ChildUnit:
    return replace(
        unit,
        phase=phase,
        deadline=inf,
        watchdog_due=inf,
        running_since=inf,
        stop_wanted=False,
        start_wanted=False,
    )


def _spawn(unit: ChildUnit, at: _Moment, *, restarts: int) -> Step:
    starting = replace(
        _rest(unit, Phase.STARTING),
        attempt=unit.attempt + 1,
        restarts=restarts,
        result=SUCCESS,
        status_text="",
        exit_status=None,
        deadline=at.now + at.limits.start_timeout_s,
    )
    return starting, (Spawn(),)


def _result(unit: ChildUnit, status: int) -> str:
    """Return systemd's Result of a unit whose main process ended; the first failure counts."""
    if unit.result != SUCCESS:
        return unit.result
    if status > 0:
        return "exit-code"
    if -status not in _CLEAN_SIGNALS and status < 0:
        return "signal"
    # A start that ends without READY=1 is none, however politely it ends.
    return "protocol" if unit.phase is Phase.STARTING else SUCCESS
