"""The life of one unit as a table: events in, state and actions out."""

import signal
from math import inf

import pytest

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
from rolemesh.agent.child_unit import (
    ChildUnit,
    Limits,
    Phase,
    StartOutcome,
    awaited_attempt,
    has_process,
    start_outcome,
    step,
)

LIMITS = Limits()
START, STOP, RESET, DEADLINE = StartWanted(), StopWanted(), ResetWanted(), DeadlinePassed()
READY, ALIVE = Notified(ready=True), Notified(alive=True)
TERM, ABRT, KILL = (
    Signal(number=number) for number in (signal.SIGTERM, signal.SIGABRT, signal.SIGKILL)
)


class Story:
    """A unit and the time; each event is told and what it caused is returned."""

    def __init__(self) -> None:
        self.unit = ChildUnit()
        self.now = 100.0

    def tell(self, *events: Event, after: float = 0) -> tuple[Action, ...]:
        self.now += after
        actions: tuple[Action, ...] = ()
        for event in events:
            self.unit, actions = step(self.unit, event, now=self.now, limits=LIMITS)
        return actions

    def until_due(self) -> tuple[Action, ...]:
        """Let the time pass until something is due."""
        self.now = self.unit.due
        return self.tell(DEADLINE)


@pytest.fixture
def story() -> Story:
    return Story()


S, R, STOPPED, FAILED = (START,), (START, READY), (START, STOP, Exited(status=0)), Phase.FAILED
CRASHED = (START, Exited(status=1))
REFUSED = (START, Exited(status=78))


@pytest.mark.parametrize(
    ("events", "phase", "result", "actions"),
    [
        # start
        (S, Phase.STARTING, "success", (Spawn(),)),
        (R, Phase.RUNNING, "success", ()),
        ((*S, START), Phase.STARTING, "success", ()),
        ((*R, START), Phase.RUNNING, "success", ()),
        ((*R, READY), Phase.RUNNING, "success", ()),
        ((*CRASHED, START), Phase.STARTING, "success", (Spawn(),)),
        ((*REFUSED, START), Phase.STARTING, "success", (Spawn(),)),
        # stop
        ((STOP,), Phase.INACTIVE, "success", ()),
        ((*S, STOP), Phase.STOPPING, "success", (TERM,)),
        ((*R, STOP), Phase.STOPPING, "success", (TERM,)),
        ((*R, STOP, STOP), Phase.STOPPING, "success", ()),
        (STOPPED, Phase.INACTIVE, "success", ()),
        ((*R, STOP, Exited(status=-15)), Phase.INACTIVE, "success", ()),
        ((*R, STOP, Exited(status=-9)), FAILED, "signal", ()),
        ((*R, STOP, Exited(status=1)), FAILED, "exit-code", ()),
        ((*CRASHED, STOP), Phase.INACTIVE, "success", ()),
        ((*REFUSED, STOP), FAILED, "exit-code", ()),
        # a start while it stops, and its withdrawal
        ((*R, STOP, START), Phase.STOPPING, "success", ()),
        ((*R, STOP, START, Exited(status=0)), Phase.STARTING, "success", (Spawn(),)),
        ((*R, STOP, START, STOP, Exited(status=0)), Phase.INACTIVE, "success", ()),
        # ends by itself
        (CRASHED, Phase.RESTARTING, "exit-code", ()),
        (REFUSED, FAILED, "exit-code", ()),
        ((*S, Exited(status=-11)), Phase.RESTARTING, "signal", ()),
        ((*S, Exited(status=0)), Phase.RESTARTING, "protocol", ()),
        ((*R, Exited(status=0)), Phase.INACTIVE, "success", ()),
        ((*R, Exited(status=137)), Phase.RESTARTING, "exit-code", ()),
        ((*R, Exited(status=78)), FAILED, "exit-code", ()),
        ((START, SpawnFailed(reason="no room")), Phase.RESTARTING, "resources", ()),
        # stops by itself
        ((*R, Notified(stopping=True)), Phase.STOPPING, "success", ()),
        ((*S, Notified(stopping=True)), Phase.STARTING, "success", ()),
        ((*R, Notified(stopping=True), Exited(status=0)), Phase.INACTIVE, "success", ()),
        ((*R, Notified(stopping=True), Exited(status=1)), Phase.RESTARTING, "exit-code", ()),
        # asks to be killed
        ((*S, Notified(trigger=True)), Phase.FAILING, "watchdog", (ABRT,)),
        ((*R, Notified(trigger=True)), Phase.FAILING, "watchdog", (ABRT,)),
        ((*R, Notified(trigger=True), Exited(status=-6)), Phase.RESTARTING, "watchdog", ()),
        ((*R, Notified(trigger=True), STOP, Exited(status=-6)), FAILED, "watchdog", ()),
        (
            (*R, Notified(trigger=True), START, Exited(status=-6)),
            Phase.STARTING,
            "success",
            (Spawn(),),
        ),
        # forget
        ((*REFUSED, RESET), Phase.INACTIVE, "success", ()),
        ((*CRASHED, RESET), Phase.RESTARTING, "exit-code", ()),
        ((*R, RESET), Phase.RUNNING, "success", ()),
        # nothing is due
        ((*R, DEADLINE), Phase.RUNNING, "success", ()),
        ((DEADLINE,), Phase.INACTIVE, "success", ()),
    ],
)
def test_a_unit_lives_as_systemds_do(
    story: Story, events: tuple[Event, ...], phase: Phase, result: str, actions: tuple[Action, ...]
) -> None:
    assert story.tell(*events) == actions
    assert (story.unit.phase, story.unit.result) == (phase, result)
    resting = {Phase.INACTIVE, Phase.FAILED, Phase.RESTARTING}
    assert has_process(story.unit) == (phase not in resting)


def test_a_start_that_takes_too_long_is_ended_and_tried_again(story: Story) -> None:
    story.tell(START)
    assert story.unit.due == story.now + 90
    assert story.until_due() == (TERM,)
    assert (story.unit.phase, story.unit.result) == (Phase.FAILING, "timeout")
    assert story.unit.due == story.now + 15
    assert story.until_due() == (KILL,)
    assert (story.unit.phase, story.unit.due) == (Phase.KILLED, story.now + 15)
    story.tell(Exited(status=-9))
    assert (story.unit.phase, story.unit.result) == (Phase.RESTARTING, "timeout")


def test_a_start_is_extended_but_never_shortened(story: Story) -> None:
    story.tell(START)
    assert story.tell(Notified(extend_s=30), after=80) == ()
    assert story.unit.due == story.now + 30
    story.tell(Notified(extend_s=1))
    assert story.unit.due == story.now + 30


def test_a_stop_that_takes_too_long_is_a_kill(story: Story) -> None:
    story.tell(START, READY, STOP)
    story.tell(Notified(extend_s=20))
    assert story.unit.due == story.now + 20
    assert story.until_due() == (KILL,)
    story.tell(Exited(status=-9))
    assert (story.unit.phase, story.unit.result) == (Phase.FAILED, "timeout")


def test_the_watchdog_wants_to_be_fed_once_the_unit_is_ready(story: Story) -> None:
    story.tell(START, ALIVE)
    assert story.unit.watchdog_due == inf
    story.tell(READY)
    story.tell(ALIVE, after=9)
    assert story.unit.due == story.now + 10
    story.tell(Notified(status_text="still here"), after=5)
    assert story.unit.due == story.now + 5
    assert story.until_due() == (ABRT,)
    assert (story.unit.phase, story.unit.result) == (Phase.FAILING, "watchdog")
    assert story.until_due() == (KILL,)
    story.tell(Exited(status=-9))
    assert (story.unit.phase, story.unit.result) == (Phase.RESTARTING, "watchdog")


def test_restarts_wait_twice_as_long_each_time(story: Story) -> None:
    story.tell(START)
    waits = []
    for restarts in range(1, 12):
        story.tell(Exited(status=1))
        waits.append(round(story.unit.due - story.now, 3))
        assert story.until_due() == (Spawn(),)
        assert story.unit.restarts == restarts
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]


@pytest.mark.parametrize(("ready_s", "wait_s"), [(59, 0.4), (61, 0.1)])
def test_a_unit_that_was_ready_for_a_minute_starts_anew(
    story: Story, ready_s: float, wait_s: float
) -> None:
    story.tell(START, Exited(status=1))
    story.until_due()
    story.tell(Exited(status=1))
    story.until_due()
    story.tell(READY)
    story.tell(Exited(status=1), after=ready_s)
    assert story.unit.due - story.now == pytest.approx(wait_s)


def test_reset_forgets_restarts_and_backoff(story: Story) -> None:
    story.tell(START, Exited(status=1))
    story.until_due()
    story.tell(RESET, Exited(status=1))
    assert story.unit.restarts == 0
    assert story.unit.due - story.now == pytest.approx(0.1)


def test_a_start_that_is_wanted_counts_restarts_from_zero(story: Story) -> None:
    story.tell(START, Exited(status=1))
    story.until_due()
    assert story.unit.restarts == 1
    story.tell(Exited(status=1), START)
    assert (story.unit.restarts, story.unit.attempt) == (0, 3)


def test_the_last_words_of_an_attempt_stay_until_the_next(story: Story) -> None:
    story.tell(START, Notified(status_text="no such file"), Exited(status=78))
    assert story.unit.status_text == "no such file"
    story.tell(START)
    assert story.unit.status_text == ""


PENDING, DONE, LOST, CANCELED = (
    StartOutcome.PENDING,
    StartOutcome.DONE,
    StartOutcome.FAILED,
    StartOutcome.CANCELED,
)


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        ((), (), PENDING),
        ((), (READY,), DONE),
        ((), (Exited(status=1),), LOST),
        ((), (Exited(status=78),), LOST),
        ((), (STOP,), CANCELED),
        ((), (STOP, Exited(status=0)), CANCELED),
        ((), (Notified(trigger=True),), PENDING),
        ((), (Notified(trigger=True), STOP), CANCELED),
        ((), (Notified(trigger=True), Exited(status=-6)), LOST),
        ((), (Notified(trigger=True), START, Exited(status=-6)), LOST),
        ((START, READY), (), DONE),
        ((START, READY, STOP), (), PENDING),
        ((START, READY, STOP), (Exited(status=0),), PENDING),
        ((START, READY, STOP), (Exited(status=0), READY), DONE),
        ((START, READY, STOP), (STOP,), CANCELED),
        ((START, READY, STOP), (STOP, Exited(status=0)), CANCELED),
        ((START, Exited(status=1)), (), PENDING),
        ((START, Exited(status=1)), (READY,), DONE),
    ],
)
def test_who_waits_for_a_start_learns_what_became_of_that_one(
    story: Story, before: tuple[Event, ...], after: tuple[Event, ...], outcome: StartOutcome
) -> None:
    story.tell(*before)
    story.tell(START)
    attempt = awaited_attempt(story.unit)
    story.tell(*after)
    assert start_outcome(story.unit, attempt) is outcome


# --- processes that are left ----------------------------------------------------------------


def test_what_is_left_is_waited_for_before_anything_follows(story: Story) -> None:
    story.tell(START, READY)
    assert story.tell(Exited(status=-9, left=True)) == ()
    assert (story.unit.phase, story.unit.result) == (Phase.KILLED, "signal")
    assert has_process(story.unit)
    story.tell(Cleared())
    assert story.unit.phase is Phase.RESTARTING


@pytest.mark.parametrize(
    ("wanted", "phase"), [((STOP,), Phase.INACTIVE), ((STOP, START), Phase.STARTING)]
)
def test_a_stop_ends_with_what_is_left(
    story: Story, wanted: tuple[Event, ...], phase: Phase
) -> None:
    story.tell(START, READY, *wanted, Exited(status=0, left=True))
    assert story.unit.phase is Phase.KILLED
    story.tell(Cleared())
    assert story.unit.phase is phase


def test_wants_are_heard_while_something_is_left(story: Story) -> None:
    story.tell(START, READY, Exited(status=-9, left=True), START)
    assert start_outcome(story.unit, awaited_attempt(story.unit)) is StartOutcome.PENDING
    story.tell(STOP, Cleared())
    assert story.unit.phase is Phase.FAILED


def test_status_78_is_final_whatever_is_left(story: Story) -> None:
    story.tell(START, Exited(status=78, left=True), Cleared())
    assert story.unit.phase is Phase.FAILED


@pytest.mark.parametrize("main_ends", [True, False])
def test_what_does_not_die_leaves_the_unit_failed_and_stuck(story: Story, main_ends: bool) -> None:
    story.tell(START, READY, STOP)
    assert story.until_due() == (KILL,)
    if main_ends:
        story.tell(Exited(status=-9, left=True), after=1)
    assert story.until_due() == ()
    assert (story.unit.phase, story.unit.result) == (Phase.FAILED, "timeout")
    assert story.unit.stuck
    assert not has_process(story.unit)
    assert story.unit.due == inf


def test_what_is_stuck_is_not_started_before_it_is_clear(story: Story) -> None:
    story.tell(START, READY, Exited(status=-6, left=True))
    story.until_due()
    assert story.unit.stuck
    for event in (START, RESET, Exited(status=-9)):
        assert story.tell(event) == ()
        assert (story.unit.phase, story.unit.stuck) == (Phase.FAILED, True)
    assert start_outcome(story.unit, awaited_attempt(story.unit)) is StartOutcome.FAILED
    story.tell(Cleared())
    assert (story.unit.phase, story.unit.stuck) == (Phase.FAILED, False)
    assert story.tell(START) == (Spawn(),)


def test_a_start_that_waits_for_what_proves_stuck_fails(story: Story) -> None:
    story.tell(START, READY, STOP, START)
    attempt = awaited_attempt(story.unit)
    story.until_due()
    story.until_due()
    assert start_outcome(story.unit, attempt) is StartOutcome.FAILED
