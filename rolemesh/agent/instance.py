"""The vocabulary of an instance's life: its states, what happens to it, what is done about it.

`transitions.step` is the state machine over these values.
"""

from dataclasses import dataclass
from enum import Enum

from rolemesh.agent.unit_control import ActiveState
from rolemesh.names import InstanceName, ModelId


class InstanceState(Enum):
    """Where an instance is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"
    STUCK = "stuck"
    """Its processes cannot be killed: nothing is started there until they are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One instance as the agent knows it.

    `model_id` is what it runs, or is about to; `next_model_id` what it shall run once the stop
    under way is over. `reason` says why it failed or who stopped it. `restarts` are the automatic
    restarts of its unit seen when it last began to load. `by_others`: the stop under way is not ours.
    """

    name: InstanceName
    state: InstanceState = InstanceState.STOPPED
    model_id: ModelId | None = None
    next_model_id: ModelId | None = None
    reason: str = ""
    restarts: int = 0
    by_others: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadWanted:
    """The instance shall run this model; what else runs there is idle."""

    model_id: ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartWanted:
    """The instance shall run its model anew: its settings changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadWanted:
    """The instance shall become empty; `why`, for the log."""

    why: str = "asked for"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """No lease is left on the instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionFailed:
    """What was asked of the unit did not come true: it did not become active, or does not stop."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLost:
    """A GPU it runs over is lost for sure; there is nothing to wait for."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckProcesses:
    """Its unit is over, and processes of it are left that cannot be killed."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitStopped:
    """The stop asked for is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitObserved:
    """The unit's status changed; `model_id` is what it was told to run, as far as is known.

    The rest is as in UnitStatus.
    """

    active: ActiveState
    model_id: ModelId | None
    status_text: str = ""
    result: str = "success"
    restarts: int = 0
    stuck_pids: tuple[int, ...] = ()

    @property
    def failing(self) -> bool:
        """Its last start or run failed (it may be about to start again by itself)."""
        return self.result != "success"


InstanceEvent = (
    LoadWanted
    | RestartWanted
    | UnloadWanted
    | Drained
    | ActionFailed
    | DeviceLost
    | StuckProcesses
    | UnitStopped
    | UnitObserved
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartUnit:
    """Tell the unit what to run, then start it."""

    model_id: ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class StopUnit:
    """Stop the unit and take back what it was told to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Say Drained as soon as no lease is left: at once, if none is."""


Action = StartUnit | StopUnit | Drain
