"""What happens to a unit of the child supervisor, and what is to be done about it; pure."""

import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWanted:
    """Somebody wants the unit to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWanted:
    """Somebody wants the unit not to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetWanted:
    """Somebody wants earlier failures forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notified:
    """The main process sent one datagram, as sd_notify(3) has it."""

    status_text: str | None = None
    ready: bool = False
    stopping: bool = False
    alive: bool = False
    trigger: bool = False
    extend_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The main process ended; `status` as subprocess has it (negative: a signal).

    `left`: other processes of the unit are still there; Cleared follows once they are not.
    """

    status: int
    left: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """No process of the unit is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnFailed:
    """The main process could not be started."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePassed:
    """The time `due` has come."""


Event = (
    StartWanted
    | StopWanted
    | ResetWanted
    | Notified
    | Exited
    | Cleared
    | SpawnFailed
    | DeadlinePassed
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawn:
    """Start the main process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Send a signal to the main process."""

    number: signal.Signals


Action = Spawn | Signal
