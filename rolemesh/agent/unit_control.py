"""What the agent may ask of the units of its instances, whoever runs them.

Two things implement this with one contract: systemd over D-Bus, and the child supervisor where
systemd is not PID 1. The vocabulary is systemd's own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from rolemesh.names import InstanceName


class ActiveState(Enum):
    """systemd's ActiveState of a unit, as far as instances have it."""

    INACTIVE = "inactive"
    ACTIVATING = "activating"
    ACTIVE = "active"
    DEACTIVATING = "deactivating"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitStatus:
    """One instance's unit as last observed.

    `main_pid` is the pid of its rolemesh-llama, None when it does not run. `status_text` is the
    last STATUS= it sent. `result` is systemd's Result: "success" unless it failed ("exit-code",
    "signal", "watchdog", "timeout", "protocol"). `restarts` counts automatic restarts (NRestarts).
    `enabled`: an admin wants it to run whenever the machine does. `stuck_pids` are processes left
    of a unit that is over, which cannot be killed.
    """

    instance: InstanceName
    active: ActiveState
    main_pid: int | None
    status_text: str
    result: str
    restarts: int
    enabled: bool = False
    stuck_pids: tuple[int, ...] = ()


class UnitControl(Protocol):
    """Start, stop and observe the units of instances."""

    async def start(self, instance: InstanceName) -> None:
        """Start the unit and return once it is active (READY=1); no effect if it is already.

        Raises UnitFailed when the start ends in any other way. Cancelling the call leaves the
        start running.
        """

    async def stop(self, instance: InstanceName) -> None:
        """Stop the unit and return once no process of it is left; no effect if it is stopped.

        Raises UnitStuck when processes are left that cannot be killed.
        """

    async def restart(self, instance: InstanceName) -> None:
        """Stop, then start."""

    async def reset_failed(self, instance: InstanceName) -> None:
        """Forget a failure, so that the unit may be started again at once."""

    def statuses(self) -> Mapping[InstanceName, UnitStatus]:
        """Return every unit known here; one never started is absent."""

    def subscribe(self, on_change: Callable[[UnitStatus], None]) -> None:
        """Call `on_change` after every change of any unit's status; it must not block."""
