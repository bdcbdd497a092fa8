"""Units that start, fail, crash and stop as a test says: a UnitControl without processes."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from rolemesh import __version__
from rolemesh.agent.instance_files import InstanceFiles
from rolemesh.agent.unit_control import ActiveState, UnitStatus
from rolemesh.errors import NodeError, UnitFailed, UnitStuck
from rolemesh.llama import server_facts
from rolemesh.llama.server_facts import ServerFacts, write_facts
from rolemesh.names import InstanceName, ModelId


class FakeUnits:
    """Units that become ready at once unless told otherwise.

    `runs` lists what was started, as (instance, model). `failing` are models whose start fails,
    with the STATUS it leaves. `unkillable` are processes that a stop cannot end.
    A load takes `load_s`. While `hold` is clear, starts wait; while `hold_stop` is, stops do.
    """

    def __init__(self, files: InstanceFiles) -> None:
        self._files = files
        self._units: dict[InstanceName, UnitStatus] = {}
        self._subscribers: list[Callable[[UnitStatus], None]] = []
        self.runs: list[tuple[InstanceName, ModelId | None]] = []
        self.stops: list[InstanceName] = []
        self.resets: list[InstanceName] = []
        self.failing: dict[ModelId, str] = {}
        self.load_s = 0.0
        self.refuses_stops = False
        self.unkillable: dict[InstanceName, tuple[int, ...]] = {}
        self.hold = asyncio.Event()
        self.hold.set()
        self.hold_stop = asyncio.Event()
        self.hold_stop.set()

    # -- what a test does to a unit --------------------------------------------------------

    def become(
        self,
        instance: str,
        active: ActiveState,
        *,
        status_text: str = "",
        result: str = "success",
        restarts: int | None = None,
        enabled: bool = False,
        main_pid: int = 4711,
    ) -> None:
        """Let a unit's status change, and tell it."""
        name = InstanceName(instance)
        before = self._units.get(name)
        self._units[name] = status = UnitStatus(
            instance=name,
            active=active,
            main_pid=main_pid if active is ActiveState.ACTIVE else None,
            status_text=status_text,
            result=result,
            enabled=enabled,
            restarts=restarts if restarts is not None else before.restarts if before else 0,
        )
        for on_change in self._subscribers:
            on_change(status)

    def crash(self, instance: str, status_text: str = "llama-server exited with status 1") -> None:
        """Let a unit fail: it waits for its automatic restart."""
        self.become(instance, ActiveState.ACTIVATING, status_text=status_text, result="exit-code")

    def restart_by_itself(self, instance: str) -> None:
        """Let the automatic restart begin."""
        restarts = self._units[InstanceName(instance)].restarts + 1
        self.become(instance, ActiveState.ACTIVATING, restarts=restarts)

    # -- UnitControl -----------------------------------------------------------------------

    async def start(self, instance: InstanceName) -> None:
        """Start a unit with what its parameters name."""
        told = self._files.read_parameters(instance)
        model_id = told.model_id if told else None
        self.runs.append((instance, model_id))
        self.become(instance, ActiveState.ACTIVATING, status_text="loading 40%")
        await asyncio.sleep(self.load_s)
        await self.hold.wait()
        reason = self.failing.get(model_id) if model_id is not None else None
        if reason is not None:
            self.become(instance, ActiveState.FAILED, status_text=reason, result="exit-code")
            raise UnitFailed(instance, result="exit-code", status_text=reason)
        if model_id is not None:
            self._tell_facts(instance, model_id)
        self.become(instance, ActiveState.ACTIVE, status_text=f"serving {model_id}")

    def _tell_facts(self, instance: InstanceName, model_id: ModelId) -> None:
        """Say what runs, as rolemesh-llama does."""
        path = self._facts_file(instance)
        path.parent.mkdir(exist_ok=True)
        facts = ServerFacts(
            version=__version__,
            server_pid=4711,
            model_id=model_id,
            generation=1,
            args_hash="0123456789abcdef",
            build="0.7.0 (build 11669)",
        )
        write_facts(path, facts)

    def _facts_file(self, instance: InstanceName) -> Path:
        return self._files.sockets / instance / server_facts.FILE_NAME

    async def stop(self, instance: InstanceName) -> None:
        """Stop a unit."""
        self.stops.append(instance)
        if self.refuses_stops:
            raise NodeError("systemd refuses StopUnit")
        if instance in self._units:
            self.become(instance, ActiveState.DEACTIVATING)
            await self.hold_stop.wait()
            if instance in self.unkillable:
                raise UnitStuck(instance, self.unkillable[instance])
            self._facts_file(instance).unlink(missing_ok=True)
            self.become(instance, ActiveState.INACTIVE)

    async def restart(self, instance: InstanceName) -> None:
        """Stop, then start."""
        await self.stop(instance)
        await self.start(instance)

    async def reset_failed(self, instance: InstanceName) -> None:
        """Forget a failure."""
        self.resets.append(instance)
        if instance in self._units:
            self._units[instance] = replace(self._units[instance], restarts=0)

    def statuses(self) -> Mapping[InstanceName, UnitStatus]:
        """Return every unit that was ever started."""
        return dict(self._units)

    def subscribe(self, on_change: Callable[[UnitStatus], None]) -> None:
        """Call `on_change` after every change."""
        self._subscribers.append(on_change)
