"""A typed client of systemd's D-Bus interface, for a few methods; the only user of jeepney.

A connection is made by `connect`; its owner runs `receive` as a task, calls `subscribe`, and in the
end `close`. It is over as soon as the bus or PID 1 goes or comes anew, for signals are lost then:
whoever waits is told BusLost, and another connection begins from what it finds.

Units go in and out by name. Their object paths die with them: a stopped unit is unloaded.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageType,
    Properties,
    message_bus,
    new_method_call,
)
from jeepney.auth import AuthenticationError
from jeepney.io.asyncio import DBusConnection
from jeepney.io.common import RouterClosed

from rolemesh.agent.dbus_connection import open_connection
from rolemesh.agent.systemd_errors import BUS, SYSTEMD, BusLost, NoSuchUnit, error_of

SYSTEM_BUS: Final = "SYSTEM"
"""The address of the system's bus, wherever that is."""

ANY_UNIT: Final = "*"

JobVerb = Literal["StartUnit", "StopUnit", "RestartUnit"]

CONNECT_TIMEOUT_S: Final = 15.0
CALL_TIMEOUT_S: Final = 25.0
_STEADY_READ_TRIES: Final = 5

_ROOT: Final = "/org/freedesktop/systemd1"
_MANAGER: Final = DBusAddress(_ROOT, SYSTEMD, f"{SYSTEMD}.Manager")
_MATCH_RULES: Final = (
    f"type='signal',sender='{BUS}',member='NameOwnerChanged',arg0='{SYSTEMD}'",
    *(
        f"type='signal',sender='{SYSTEMD}',interface='{SYSTEMD}.Manager',member='{member}'"
        for member in ("JobRemoved", "UnitNew", "UnitRemoved", "UnitFilesChanged", "Reloading")
    ),
    f"type='signal',sender='{SYSTEMD}',interface='{BUS}.Properties',"
    f"member='PropertiesChanged',path_namespace='{_ROOT}/unit'",
)
_ALREADY_SUBSCRIBED: Final = f"{SYSTEMD}.AlreadySubscribed"
_ESCAPED: Final = re.compile(r"_([0-9a-f]{2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitReading:
    """A unit's properties at one moment, in systemd's own words; `main_pid` is 0 for none."""

    active_state: str
    sub_state: str
    main_pid: int
    status_text: str
    result: str
    restarts: int
    unit_file_state: str


class SystemdBus:
    """One connection to systemd.

    `changed` is called with the name of any unit that may differ, or with ANY_UNIT.
    """

    def __init__(self, connection: DBusConnection, changed: Callable[[str], None]) -> None:
        self._connection = connection
        self._changed = changed
        self._owner = ""
        self._lost = asyncio.Event()
        self._why_lost = ""
        # None is what those get who still wait when the connection is over.
        self._replies: dict[int, asyncio.Future[Message | None]] = {}
        self._jobs: list[tuple[str, _Job]] = []

    @classmethod
    async def connect(cls, address: str, changed: Callable[[str], None]) -> Self:
        """Connect to the bus at `address` (as in $DBUS_SYSTEM_BUS_ADDRESS); raises BusLost."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return cls(await open_connection(address), changed)
        except (OSError, EOFError, RouterClosed, AuthenticationError) as err:
            msg = f"no connection to the D-Bus system bus: {err or type(err).__name__}"
            raise BusLost(msg) from err

    # -- life ------------------------------------------------------------------------------

    async def receive(self) -> None:
        """Take in what the bus sends until the connection is over."""
        try:
            while not self._lost.is_set():
                self._dispatch(await self._connection.receive())
        except (OSError, EOFError):
            self._end("the D-Bus system bus closed the connection")
        finally:
            self._end("the connection was closed")

    async def subscribe(self) -> None:
        """Have systemd tell of changes; before anything else, and with `receive` running."""
        for rule in _MATCH_RULES:
            await self._call(message_bus.AddMatch(rule))
        self._owner = await self._call(message_bus.GetNameOwner(SYSTEMD))
        await self._ask("Subscribe", ignored=_ALREADY_SUBSCRIBED)

    @property
    def is_lost(self) -> bool:
        """Whether the connection is over."""
        return self._lost.is_set()

    async def lost(self) -> str:
        """Return, once the connection is over, why."""
        await self._lost.wait()
        return self._why_lost

    async def close(self) -> None:
        """End the connection."""
        self._end("the connection was closed")
        with contextlib.suppress(OSError):
            await self._connection.close()

    def _end(self, why: str) -> None:
        if self._lost.is_set():
            return
        self._why_lost = why
        self._lost.set()
        for reply in self._replies.values():
            _settle(reply, None)
        for _, job in self._jobs:
            _settle(job.result, None)

    # -- what can be asked -----------------------------------------------------------------

    async def list_units(self, pattern: str) -> tuple[str, ...]:
        """Return the names of the loaded units that match."""
        units = await self._ask("ListUnitsByPatterns", "asas", [], [pattern])
        return tuple(unit[0] for unit in units)

    async def read_unit(self, unit: str) -> UnitReading | None:
        """Return how a unit stands, None when it is not loaded."""
        try:
            # Asking the object itself would load the unit, which would be the next change.
            path = await self._ask("GetUnit", "s", unit, unit=unit)
            return await self._read(path)
        except NoSuchUnit:
            return None

    async def unit_processes(self, unit: str) -> tuple[int, ...]:
        """Return the pids of all processes in a unit's control group; none if it is not loaded."""
        try:
            processes = await self._ask("GetUnitProcesses", "s", unit, unit=unit)
        except NoSuchUnit:
            return ()
        return tuple(sorted(pid for _group, pid, _command in processes))

    async def reset_failed(self, unit: str) -> None:
        """Forget a unit's failure; raises NoSuchUnit."""
        await self._ask("ResetFailedUnit", "s", unit, unit=unit)

    async def run_job(self, verb: JobVerb, unit: str) -> str:
        """Start, stop or restart a unit; return the job's result: "done" or how else it ended.

        A start never takes the place of what somebody else has queued: raises NodeError then, and
        NoSuchUnit on the stop of a unit that is not loaded. Cancelling leaves the job running.
        """
        mode = "replace" if verb == "StopUnit" else "fail"
        job = _Job()
        entry = (unit, job)
        self._jobs.append(entry)
        try:
            job.asked_for(await self._ask(verb, "ss", unit, mode, unit=unit))
            result = await job.result
        finally:
            self._jobs.remove(entry)
        if result is None:
            raise BusLost(self._why_lost)
        return result

    async def _read(self, path: str) -> UnitReading:
        reading = await self._read_once(path)
        for _ in range(_STEADY_READ_TRIES):
            # Each property is asked for by itself: a change in between makes a mixture.
            if await self._read_state(path) == (reading.active_state, reading.sub_state):
                break
            reading = await self._read_once(path)
        return reading

    async def _read_once(self, path: str) -> UnitReading:
        active_state, sub_state = await self._read_state(path)
        return UnitReading(
            active_state=active_state,
            sub_state=sub_state,
            main_pid=await self._get(path, "Service", "MainPID"),
            status_text=await self._get(path, "Service", "StatusText"),
            result=await self._get(path, "Service", "Result"),
            restarts=await self._get(path, "Service", "NRestarts"),
            unit_file_state=await self._get(path, "Unit", "UnitFileState"),
        )

    async def _read_state(self, path: str) -> tuple[str, str]:
        return await self._get(path, "Unit", "ActiveState"), await self._get(
            path, "Unit", "SubState"
        )

    async def _get(self, path: str, interface: str, name: str) -> Any:
        address = DBusAddress(path, SYSTEMD, f"{SYSTEMD}.{interface}")
        _signature, value = await self._call(Properties(address).get(name))
        return value

    # -- messages --------------------------------------------------------------------------

    async def _ask(
        self, method: str, signature: str = "", *body: Any, unit: str = "", ignored: str = ""
    ) -> Any:
        call = new_method_call(_MANAGER, method, signature or None, body)
        return await self._call(call, what=f"{method} {unit}".rstrip(), ignored=ignored)

    async def _call(self, message: Message, *, what: str = "", ignored: str = "") -> Any:
        """Return the first value of the reply; raises what `error_of` makes of an error."""
        if self._lost.is_set():
            raise BusLost(self._why_lost)
        serial = next(self._connection.outgoing_serial)
        future = self._replies[serial] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._connection.send(message, serial=serial)
                reply = await future
        except TimeoutError:
            self._end(f"systemd does not answer within {CALL_TIMEOUT_S:g} s")
            reply = None
        except OSError as err:
            self._end(f"the D-Bus system bus cannot be written to: {err}")
            reply = None
        finally:
            del self._replies[serial]
        if reply is None:
            raise BusLost(self._why_lost)
        if reply.header.message_type is not MessageType.error:
            return reply.body[0] if reply.body else None
        name = reply.header.fields[HeaderFields.error_name]
        if name == ignored:
            return None
        error = error_of(name, str(reply.body[0]) if reply.body else "", what)
        if isinstance(error, BusLost):
            self._end(str(error))
        raise error

    def _dispatch(self, message: Message) -> None:
        fields = message.header.fields
        match message.header.message_type:
            case MessageType.method_return | MessageType.error:
                future = self._replies.get(fields.get(HeaderFields.reply_serial, 0))
                if future is not None:
                    _settle(future, message)
            case MessageType.signal if fields[HeaderFields.sender] == BUS:
                if fields[HeaderFields.member] == "NameOwnerChanged":
                    self._end("systemd left the D-Bus system bus, or came anew")
            # Anybody may send us signals; systemd's carry the name that the bus gave it.
            case MessageType.signal if fields[HeaderFields.sender] == self._owner:
                member, path = fields[HeaderFields.member], fields[HeaderFields.path]
                self._take_signal(member, path, message.body)

    def _take_signal(self, member: str, path: str, body: tuple[Any, ...]) -> None:
        match member:
            case "JobRemoved":
                _, job_path, unit, result = body
                for awaited, job in self._jobs:
                    if awaited == unit:
                        job.ended(job_path, result)
                self._changed(unit)
            case "UnitNew" | "UnitRemoved":
                self._changed(body[0])
            case "PropertiesChanged":
                self._changed(unit_of(path))
            case "UnitFilesChanged" | "Reloading":
                self._changed(ANY_UNIT)
            case _:
                pass


class _Job:
    """A job asked for; its end may be told before its path. `result` is None with the bus lost."""

    def __init__(self) -> None:
        self.result: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._path = ""
        self._ended: dict[str, str] = {}

    def asked_for(self, path: str) -> None:
        """Take the job's path: systemd's reply."""
        self._path = path
        self._compare()

    def ended(self, path: str, result: str) -> None:
        """Take the end of a job of the same unit, perhaps of this one."""
        self._ended[path] = result
        self._compare()

    def _compare(self) -> None:
        if self._path in self._ended:
            _settle(self.result, self._ended[self._path])


def unit_of(path: str) -> str:
    """Return the name of the unit that has this object path."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), path.rpartition("/")[2])


def _settle(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)
