"""Runs the units of instances by systemd: UnitControl over D-Bus.

systemd owns them: they outlive this process, which adopts what it finds at each connection. What
others do to them (an admin, systemd's own restarts) shows in `statuses` like what is done here.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from rolemesh.agent.systemd_bus import (
    ANY_UNIT,
    SYSTEM_BUS,
    JobVerb,
    SystemdBus,
    UnitReading,
)
from rolemesh.agent.systemd_errors import BusLost, NoSuchUnit
from rolemesh.agent.unit_control import ActiveState, UnitStatus
from rolemesh.errors import NodeError, StartError, UnitFailed, UnitStuck
from rolemesh.names import InstanceName, parse_instance
from rolemesh.runtime.tasks import TaskScope

logger = logging.getLogger(__name__)

TEMPLATE: Final = "rolemesh-llama@.service"

CONNECTION_WAIT_S: Final = 30.0
"""How long a call, or the start of the agent, waits for a connection."""

_ATTEMPTS: Final = 5
"""How often a call is made that loses its connection: the load of a model may outlive several."""

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
STUCK_LOOK_S: Final = 3.0
"""How often it is looked whether what is left of a unit is gone: systemd does not tell."""

_GATHER_S: Final = 0.02
"""Hints come in bursts, about eight for a start: one reading answers all of them."""

_PREFIX, _SUFFIX = TEMPLATE.split("@")[0] + "@", ".service"
_SUCCESS: Final = "success"
_ACTIVE_STATES: Final[Mapping[str, ActiveState]] = {
    **{state.value: state for state in ActiveState},
    "reloading": ActiveState.ACTIVE,
    "refreshing": ActiveState.ACTIVE,
    "maintenance": ActiveState.INACTIVE,
}
_OVER: Final = frozenset({ActiveState.INACTIVE, ActiveState.FAILED})
_ENABLED: Final = frozenset({"enabled", "enabled-runtime"})
_PAUSES_BEFORE_RESTART: Final = frozenset({"auto-restart", "auto-restart-queued"})


def unit_name(instance: InstanceName) -> str:
    """Return the name of the instance's unit."""
    return f"{_PREFIX}{instance}{_SUFFIX}"


def instance_of(unit: str) -> InstanceName | None:
    """Return the instance that a unit is, None if it is none."""
    if not (unit.startswith(_PREFIX) and unit.endswith(_SUFFIX)):
        return None
    try:
        return parse_instance(unit.removeprefix(_PREFIX).removesuffix(_SUFFIX))
    except ValueError:
        return None


class SystemdUnits:
    """UnitControl by systemd; an async context manager that leaves all units as they are."""

    def __init__(self, *, address: str = SYSTEM_BUS) -> None:
        self._address = address
        self._statuses: dict[InstanceName, UnitStatus] = {}
        self._subscribers: list[Callable[[UnitStatus], None]] = []
        self._scope = TaskScope()
        self._bus: SystemdBus | None = None
        self._why_unreachable = "not connected yet"
        self._connected = asyncio.Event()
        self._hinted: dict[InstanceName, None] = {}
        self._hint = asyncio.Event()
        # One reading at a time: the latest answer is the latest truth.
        self._reading = asyncio.Lock()
        self._look_timers: dict[InstanceName, asyncio.TimerHandle] = {}

    async def __aenter__(self) -> Self:
        """Connect and adopt what runs; raises StartError when systemd cannot be reached."""
        _ = await self._scope.__aenter__()
        _ = self._scope.start(self._keep_connected(), name="connection to systemd")
        _ = self._scope.start(self._follow_hints(), name="changes of units")
        try:
            _ = await self._connection()
        except BaseException as err:
            await self._scope.__aexit__(None, None, None)
            if isinstance(err, NodeError):
                raise StartError(str(err)) from err
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the bus; the units go on."""
        for timer in self._look_timers.values():
            timer.cancel()
        await self._scope.__aexit__(exc_type, exc, traceback)

    async def start(self, instance: InstanceName) -> None:
        """Start the unit and return once it is active; see UnitControl."""

        async def call(bus: SystemdBus) -> None:
            reading = await bus.read_unit(unit_name(instance))
            # systemd holds a plain start back until the pause before its own restart is over.
            pausing = reading is not None and reading.sub_state in _PAUSES_BEFORE_RESTART
            await self._activate(bus, "RestartUnit" if pausing else "StartUnit", instance)

        await self._attempt(call)

    async def stop(self, instance: InstanceName) -> None:
        """Stop the unit and return once no process of it is left; see UnitControl."""

        async def call(bus: SystemdBus) -> None:
            try:
                result = await bus.run_job("StopUnit", unit_name(instance))
            except NoSuchUnit:
                result = "done"
            await self._read(bus, (instance,))
            status = self._statuses.get(instance)
            if status is not None and status.stuck_pids:
                raise UnitStuck(instance, status.stuck_pids)
            if result == "canceled":
                msg = "somebody else started it again before it had stopped"
                raise NodeError(msg)
            if result != "done":
                msg = f"{unit_name(instance)} did not stop ({result})"
                raise NodeError(msg)

        await self._attempt(call)

    async def restart(self, instance: InstanceName) -> None:
        """Stop, then start."""
        status = self._statuses.get(instance)
        before = (status.main_pid if status else None) or 0

        async def call(bus: SystemdBus) -> None:
            # Asked once more, it may have been restarted already.
            reading = await bus.read_unit(unit_name(instance))
            done = reading is not None and reading.main_pid != before
            await self._activate(bus, "StartUnit" if done else "RestartUnit", instance)

        await self._attempt(call)

    async def reset_failed(self, instance: InstanceName) -> None:
        """Forget a failure; see UnitControl."""

        async def call(bus: SystemdBus) -> None:
            with contextlib.suppress(NoSuchUnit):
                await bus.reset_failed(unit_name(instance))
            await self._read(bus, (instance,))

        await self._attempt(call)

    def statuses(self) -> Mapping[InstanceName, UnitStatus]:
        """Return every unit that ran since this process looks, or has failed."""
        return dict(self._statuses)

    def subscribe(self, on_change: Callable[[UnitStatus], None]) -> None:
        """Call `on_change` after every change of any unit's status."""
        self._subscribers.append(on_change)

    # -- calls -----------------------------------------------------------------------------

    async def _activate(self, bus: SystemdBus, verb: JobVerb, instance: InstanceName) -> None:
        result = await bus.run_job(verb, unit_name(instance))
        await self._read(bus, (instance,), known=True)
        if result == "done":
            return
        if result == "canceled":
            text = "stopped before it was ready"
            raise UnitFailed(instance, result=result, status_text=text)
        status = self._statuses[instance]
        # It may be starting again already, with nothing to say yet.
        reason = result if status.result == _SUCCESS else status.result
        text = status.status_text or f"{reason}; see journalctl -u {unit_name(instance)}"
        raise UnitFailed(instance, result=reason, status_text=text)

    async def _attempt(self, call: Callable[[SystemdBus], Awaitable[None]]) -> None:
        """Make a call; when the connection is lost under it, again on the next one.

        A job goes on without us, and asking for it again joins it or finds it done.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                await call(await self._connection())
            except BusLost as err:
                logger.info("asking systemd once more: %s", err)
            else:
                return
        await call(await self._connection())

    async def _connection(self) -> SystemdBus:
        """Return the connection, waiting for it a while; raises NodeError."""
        try:
            async with asyncio.timeout(CONNECTION_WAIT_S):
                while self._bus is None or self._bus.is_lost:
                    self._connected.clear()
                    await self._connected.wait()
        except TimeoutError:
            msg = f"systemd cannot be reached: {self._why_unreachable}"
            raise NodeError(msg) from None
        return self._bus

    # -- the connection --------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._use_connection()
                pause_s = _FIRST_PAUSE_S
            except NodeError as err:  # lost, or refused in the middle of a change of systemd's
                self._why_unreachable = str(err)
            log = logger.warning if pause_s == _FIRST_PAUSE_S else logger.debug
            log("connection to systemd lost (%s); connecting again", self._why_unreachable)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _use_connection(self) -> None:
        """Connect, adopt what is there, and be connected; raises BusLost when that fails."""
        bus = await SystemdBus.connect(self._address, self._unit_changed)
        _ = self._scope.start(bus.receive(), name="receive from systemd")
        try:
            await bus.subscribe()
            listed = map(instance_of, await bus.list_units(f"{_PREFIX}*{_SUFFIX}"))
            found = dict.fromkeys(instance for instance in listed if instance is not None)
            await self._read(bus, {**found, **dict.fromkeys(self._statuses)})
            self._bus = bus
            self._connected.set()
            logger.info("connected to systemd; its instances: %s", ", ".join(found) or "none")
            self._why_unreachable = await bus.lost()
        finally:
            self._connected.clear()
            self._bus = None
            await bus.close()

    # -- what units are --------------------------------------------------------------------

    def _unit_changed(self, unit: str) -> None:
        instance = instance_of(unit)
        if instance is not None:
            self._hinted[instance] = None
        elif unit == ANY_UNIT:
            self._hinted |= dict.fromkeys(self._statuses)
        if self._hinted:
            self._hint.set()

    async def _follow_hints(self) -> None:
        while True:
            await self._hint.wait()
            await asyncio.sleep(_GATHER_S)
            self._hint.clear()
            hinted, self._hinted = self._hinted, {}
            if self._bus is None:
                continue  # a new connection begins with reading all of them
            try:
                await self._read(self._bus, hinted)
            except BusLost:
                continue
            except NodeError as err:
                logger.warning("cannot tell how %s stand: %s", ", ".join(hinted), err)

    async def _read(
        self, bus: SystemdBus, instances: Iterable[InstanceName], *, known: bool = False
    ) -> None:
        """Read units; one that never ran stays unknown here unless `known`."""
        async with self._reading:
            for instance in instances:
                status = await self._read_one(bus, instance)
                before = self._statuses.get(instance)
                never_ran = before is None and status.active is ActiveState.INACTIVE
                if status != before and (known or not never_ran):
                    self._statuses[instance] = status
                    for on_change in self._subscribers:
                        on_change(status)

    async def _read_one(self, bus: SystemdBus, instance: InstanceName) -> UnitStatus:
        reading = await bus.read_unit(unit_name(instance))
        status = _status(instance, reading)
        if reading is None or status.active not in _OVER:
            return status
        # systemd gives up on what SIGKILL does not end, and calls the unit failed.
        pids = await _processes(bus, instance)
        if pids and instance not in self._look_timers:
            self._look_timers[instance] = asyncio.get_running_loop().call_later(
                STUCK_LOOK_S, self._look_again, instance
            )
        return replace(status, stuck_pids=pids)

    def _look_again(self, instance: InstanceName) -> None:
        del self._look_timers[instance]
        self._unit_changed(unit_name(instance))


async def _processes(bus: SystemdBus, instance: InstanceName) -> tuple[int, ...]:
    try:
        return await bus.unit_processes(unit_name(instance))
    except BusLost:
        raise
    except NodeError as err:
        logger.warning("cannot tell which processes of %s are left: %s", instance, err)
        return ()


def _status(instance: InstanceName, reading: UnitReading | None) -> UnitStatus:
    """Return a reading in the agent's words; a unit that is not loaded is a stopped one."""
    if reading is None:
        return UnitStatus(
            instance=instance,
            active=ActiveState.INACTIVE,
            main_pid=None,
            status_text="",
            result=_SUCCESS,
            restarts=0,
        )
    # A state that a later systemd may have: its main process tells most.
    otherwise = ActiveState.ACTIVE if reading.main_pid else ActiveState.INACTIVE
    return UnitStatus(
        instance=instance,
        active=_ACTIVE_STATES.get(reading.active_state, otherwise),
        main_pid=reading.main_pid or None,
        status_text=reading.status_text,
        result=reading.result,
        restarts=reading.restarts,
        enabled=reading.unit_file_state in _ENABLED,
    )
