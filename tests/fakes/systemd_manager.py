"""systemd's D-Bus interface on a bus of the test's own, for units that do what the test says.

The bus is a real dbus-daemon. Units are only states: nothing is executed. What systemd does that
clients trip over, this does too: JobRemoved before the reply, signals in pairs and none before
Subscribe, units that are gone once stopped.
"""

import asyncio
import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageType,
    message_bus,
    new_error,
    new_method_return,
    new_signal,
)
from jeepney.io.asyncio import DBusConnection, open_dbus_connection

from rolemesh.runtime.tasks import TaskScope
from tests.lab.poll import eventually
from tests.lab.processes import Program, start_program

SYSTEMD = "org.freedesktop.systemd1"
ROOT = "/org/freedesktop/systemd1"
PROPERTIES = "org.freedesktop.DBus.Properties"
NOT_LOADED = f"{SYSTEMD}.NoSuchUnit"

BUS_CONFIG = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
  </policy>
</busconfig>
"""


class PrivateBus:
    """A dbus-daemon on a UNIX socket in `folder`, to be started and killed as often as needed."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "bus"
        self._config = folder / "bus.conf"
        self._log = folder / "bus.log"
        self._program: Program | None = None
        self.address = f"unix:path={self._socket}"

    async def start(self) -> None:
        """Start it, and return once it takes connections."""
        self._config.write_text(BUS_CONFIG.format(socket=self._socket))
        command = ("dbus-daemon", f"--config-file={self._config}", "--nofork", "--nopidfile")
        self._program = start_program(command, log=self._log)
        await eventually(self._answers, what="the bus is there")

    async def kill(self) -> None:
        """End it; its clients see their connections close."""
        assert self._program is not None
        await self._program.stop()
        self._socket.unlink(missing_ok=True)

    async def _answers(self) -> bool:
        try:
            connection = await open_dbus_connection(self.address)
        except OSError:  # nobody listens yet
            return False
        await connection.close()
        return True


@dataclass(kw_only=True)
class Script:
    """What the next starts of a unit come to: how they end, and when (`go`)."""

    result: str = "success"
    status_text: str = "serving"
    tries_again: bool = False
    go: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def at_once(cls, **how: Any) -> "Script":
        script = cls(**how)
        script.go.set()
        return script


@dataclass(kw_only=True)
class FakeUnit:
    """A loaded unit."""

    name: str
    properties: dict[str, tuple[str, Any]] = field(
        default_factory=lambda: {
            "ActiveState": ("s", "inactive"),
            "SubState": ("s", "dead"),
            "MainPID": ("u", 0),
            "StatusText": ("s", ""),
            "Result": ("s", "success"),
            "NRestarts": ("u", 0),
            "UnitFileState": ("s", "disabled"),
        }
    )

    @property
    def active(self) -> str:
        return str(self.properties["ActiveState"][1])

    def set(self, active: str | None = None, sub: str | None = None, **others: Any) -> None:
        for name, value in {"ActiveState": active, "SubState": sub, **others}.items():
            if value is not None:
                self.properties[name] = (self.properties[name][0], value)


@dataclass(kw_only=True, eq=False)
class FakeJob:
    """A queued job of a unit."""

    number: int
    unit: str
    kind: str
    task: asyncio.Task[None] | None = None

    @property
    def path(self) -> str:
        return f"{ROOT}/job/{self.number}"


class FakeSystemd:
    """The manager; `calls` are what it was asked for.

    `ends_first`: JobRemoved is sent before the reply. `refuses`: method -> name of an error.
    `silent`: methods that get no reply. `loads`: how often an object was asked that is not loaded.
    `after_get` is called after each property read. Units stop only while `stops` is set, and fail
    to where they have `unkillable` processes.
    """

    def __init__(self, scope: TaskScope) -> None:
        self.units: dict[str, FakeUnit] = {}
        self.scripts: dict[str, Script] = {}
        self.calls: list[tuple[str, ...]] = []
        self.refuses: dict[str, str] = {}
        self.ends_first = False
        self.loads = 0
        self.silent: set[str] = set()
        self.stops = asyncio.Event()
        self.stops.set()
        self.unkillable: dict[str, list[int]] = {}
        self.after_get: Callable[[], None] = lambda: None
        self._scope = scope
        self._connection: DBusConnection | None = None
        self._subscribed = False
        self._jobs: dict[str, FakeJob] = {}
        self._numbers = itertools.count(100)

    # -- what tests do ---------------------------------------------------------------------

    async def connect(self, address: str) -> None:
        """Be systemd on the bus there."""
        self._connection = await open_dbus_connection(address)
        self._subscribed = False
        _ = self._scope.start(self._serve(self._connection), name="fake systemd")
        await self._connection.send(message_bus.RequestName(SYSTEMD))

    async def disconnect(self) -> None:
        """Leave the bus, as PID 1 does when it is executed anew."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                await self._connection.close()
            self._connection = None

    def load(self, name: str, **properties: Any) -> FakeUnit:
        """Have a unit, without a word to anybody."""
        unit = self.units[name] = FakeUnit(name=name)
        unit.set(**properties)
        return unit

    async def become(self, name: str, **properties: Any) -> None:
        """Change a unit from outside."""
        if name not in self.units:
            self.load(name)
            await self._signal("UnitNew", "so", (name, path_of(name)))
        self.units[name].set(**properties)
        await self._tell(name)

    async def crash(self, name: str) -> None:
        """Have the main process die by a signal, and systemd start it again."""
        restarts = self.units[name].properties["NRestarts"][1] + 1
        changes = {"MainPID": 0, "Result": "signal", "NRestarts": restarts}
        await self.become(name, active="activating", sub="auto-restart", **changes)
        job = FakeJob(number=next(self._numbers), unit=name, kind="start")
        job.task = self._scope.start(self._run(job), name=f"restart {name}")

    async def start_by_hand(self, name: str) -> None:
        """Have an admin start a unit, whatever was to become of it."""
        await self._cancel(name)
        job = self._jobs[name] = FakeJob(number=next(self._numbers), unit=name, kind="start")
        job.task = self._scope.start(self._run(job), name=f"start {name} by hand")

    async def change_files(self, name: str, state: str) -> None:
        """Have an admin enable or disable a unit."""
        self.units[name].set(UnitFileState=state)
        await self._signal("UnitFilesChanged", "", ())

    async def unload(self, name: str) -> None:
        """Forget a unit, as systemd does with each that is stopped."""
        del self.units[name]
        await self._signal("UnitRemoved", "so", (name, path_of(name)))

    async def forge(self, connection: DBusConnection, destination: str, member: str) -> None:
        """Have somebody else send a signal that looks like systemd's."""
        address = DBusAddress(ROOT, interface=f"{SYSTEMD}.Manager")
        signal = new_signal(address, member, "so", ("rolemesh-llama@gpu9.service", ROOT))
        signal.header.fields[HeaderFields.destination] = destination
        await connection.send(signal)

    # -- methods ---------------------------------------------------------------------------

    async def _serve(self, connection: DBusConnection) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = await connection.receive()
                if message.header.message_type is MessageType.method_call:
                    await self._answer(connection, message)

    async def _answer(self, connection: DBusConnection, call: Message) -> None:
        fields = call.header.fields
        method, path = fields[HeaderFields.member], fields[HeaderFields.path]
        self.calls.append((method, *(str(word) for word in call.body)))
        if method in self.silent:
            return
        if method in self.refuses:
            await connection.send(new_error(call, self.refuses[method], "s", ("refused",)))
            return
        if method == "Get":
            await connection.send(self._get(call, path, call.body[1]))
            self.after_get()
            return
        await getattr(self, f"_on_{method}")(connection, call, *call.body)

    def _get(self, call: Message, path: str, name: str) -> Message:
        unit = next((each for each in self.units.values() if path_of(each.name) == path), None)
        if unit is None:
            self.loads += 1
            unit = FakeUnit(name="absent.service")
        return new_method_return(call, "v", (unit.properties[name],))

    async def _on_Subscribe(self, connection: DBusConnection, call: Message) -> None:  # noqa: N802
        if self._subscribed:
            error = f"{SYSTEMD}.AlreadySubscribed"
            await connection.send(new_error(call, error, "s", ("subscribed",)))
            return
        self._subscribed = True
        await connection.send(new_method_return(call))

    async def _on_ListUnitsByPatterns(  # noqa: N802
        self, connection: DBusConnection, call: Message, _states: Any, patterns: list[str]
    ) -> None:
        prefix = patterns[0].partition("*")[0]
        rows = [
            (name, "", "loaded", unit.active, "", "", path_of(name), 0, "", "/")
            for name, unit in self.units.items()
            if name.startswith(prefix)
        ]
        await connection.send(new_method_return(call, "a(ssssssouso)", (rows,)))

    async def _on_GetUnit(  # noqa: N802
        self, connection: DBusConnection, call: Message, name: str
    ) -> None:
        if name in self.units:
            await connection.send(new_method_return(call, "o", (path_of(name),)))
        else:
            await connection.send(new_error(call, NOT_LOADED, "s", (f"{name} not loaded",)))

    async def _on_GetUnitProcesses(  # noqa: N802
        self, connection: DBusConnection, call: Message, name: str
    ) -> None:
        if name not in self.units:
            await connection.send(new_error(call, NOT_LOADED, "s", (f"{name} not loaded",)))
            return
        group = f"/rolemesh.slice/{name}"
        rows = [(group, pid, "llama-server -m x") for pid in self.unkillable.get(name, ())]
        await connection.send(new_method_return(call, "a(sus)", (rows,)))

    async def _on_ResetFailedUnit(  # noqa: N802
        self, connection: DBusConnection, call: Message, name: str
    ) -> None:
        if name not in self.units:
            await connection.send(new_error(call, NOT_LOADED, "s", (f"{name} not loaded",)))
            return
        unit = self.units[name]
        unit.set(Result="success", NRestarts=0)
        if unit.active == "failed":
            unit.set("inactive", "dead")
            await self._tell(name)
        await connection.send(new_method_return(call))

    async def _on_StartUnit(  # noqa: N802
        self, connection: DBusConnection, call: Message, name: str, mode: str
    ) -> None:
        if self.units.get(name, FakeUnit(name=name)).active == "active":
            await self._queue(connection, call, name, "nothing", mode)
            return
        await self._queue(connection, call, name, "start", mode)

    async def _on_RestartUnit(  # noqa: N802
        self, connection: DBusConnection, call: Message, name: str, mode: str
    ) -> None:
        await self._queue(connection, call, name, "restart", mode)

    async def _on_StopUnit(  # noqa: N802
        self, connection: DBusConnection, call: Message, name: str, mode: str
    ) -> None:
        if name not in self.units:
            await connection.send(new_error(call, NOT_LOADED, "s", (f"{name} not loaded",)))
            return
        await self._queue(connection, call, name, "stop", mode)

    # -- jobs ------------------------------------------------------------------------------

    async def _queue(
        self, connection: DBusConnection, call: Message, name: str, kind: str, mode: str
    ) -> None:
        before = self._jobs.get(name)
        if before is not None and before.kind == kind:
            await connection.send(new_method_return(call, "o", (before.path,)))
            return
        if before is not None and mode == "fail" and "stop" in (before.kind, kind):
            error = f"{SYSTEMD}.TransactionIsDestructive"
            await connection.send(new_error(call, error, "s", (f"{name} has another job",)))
            return
        await self._cancel(name)
        job = self._jobs[name] = FakeJob(number=next(self._numbers), unit=name, kind=kind)
        if self.ends_first:
            await self._run(job)
            await connection.send(new_method_return(call, "o", (job.path,)))
            return
        await connection.send(new_method_return(call, "o", (job.path,)))
        job.task = self._scope.start(self._run(job), name=f"{kind} {name}")

    async def _cancel(self, name: str) -> None:
        job = self._jobs.get(name)
        if job is not None:
            if job.task is not None:
                job.task.cancel()
            await self._end(job, "canceled")

    async def _run(self, job: FakeJob) -> None:
        match job.kind:
            case "start":
                await self._run_start(job)
            case "restart":
                await self._run_stop(job.unit)
                await self._run_start(job)
            case "stop":
                await self._run_stop(job.unit)
                await self._end(job, "done")
                if job.unit in self.units and self.units[job.unit].active == "inactive":
                    await self.unload(job.unit)
            case _:
                await self._end(job, "done")

    async def _run_start(self, job: FakeJob) -> None:
        script = self.scripts.get(job.unit) or Script.at_once()
        pid = next(self._numbers)
        changes = {"MainPID": pid, "Result": "success", "StatusText": "loading"}
        await self.become(job.unit, active="activating", sub="start", **changes)
        await script.go.wait()
        if script.result == "success":
            changes = {"StatusText": script.status_text}
            await self.become(job.unit, active="active", sub="running", **changes)
            await self._end(job, "done")
            return
        changes = {"MainPID": 0, "Result": script.result, "StatusText": script.status_text}
        state = ("activating", "auto-restart") if script.tries_again else ("failed", "failed")
        await self.become(job.unit, active=state[0], sub=state[1], **changes)
        await self._end(job, "failed")

    async def _run_stop(self, name: str) -> None:
        if name in self.units and self.units[name].active not in {"inactive", "failed"}:
            await self.become(name, active="deactivating", sub="stop-sigterm")
            await self.stops.wait()
            if self.unkillable.get(name):
                changes = {"MainPID": 0, "Result": "timeout"}
                await self.become(name, active="failed", sub="failed", **changes)
            else:
                await self.become(name, active="inactive", sub="dead", MainPID=0)

    async def _end(self, job: FakeJob, result: str) -> None:
        if self._jobs.get(job.unit) is job:
            del self._jobs[job.unit]
        await self._signal("JobRemoved", "uoss", (job.number, job.path, job.unit, result))

    # -- signals ---------------------------------------------------------------------------

    async def _tell(self, name: str) -> None:
        for interface in ("Service", "Unit", "Service", "Unit"):
            address = DBusAddress(path_of(name), interface=PROPERTIES)
            body: tuple[Any, ...] = (f"{SYSTEMD}.{interface}", {}, [])
            await self._send(new_signal(address, "PropertiesChanged", "sa{sv}as", body))

    async def _signal(self, member: str, signature: str, body: tuple[Any, ...]) -> None:
        address = DBusAddress(ROOT, interface=f"{SYSTEMD}.Manager")
        await self._send(new_signal(address, member, signature, body))

    async def _send(self, message: Message) -> None:
        if self._connection is not None and self._subscribed:
            with contextlib.suppress(OSError):
                await self._connection.send(message)


def path_of(name: str) -> str:
    """Return the object path of a unit."""
    escaped = re.sub(r"[^A-Za-z0-9]", lambda match: f"_{ord(match[0]):02x}", name)
    return f"{ROOT}/unit/{escaped}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeHost:
    """A bus and the systemd on it."""

    bus: PrivateBus
    systemd: FakeSystemd

    async def restart_bus(self) -> None:
        """Restart the dbus-daemon; systemd connects anew, by itself."""
        await self.bus.kill()
        await self.systemd.disconnect()
        await self.bus.start()
        await self.systemd.connect(self.bus.address)

    async def reexec(self) -> None:
        """Execute systemd anew: the bus stays, systemd comes back under another name."""
        await self.systemd.disconnect()
        await self.systemd.connect(self.bus.address)


@contextlib.asynccontextmanager
async def fake_systemd(folder: Path) -> AsyncIterator[FakeHost]:
    """Run a bus with a systemd on it for the length of the block."""
    bus = PrivateBus(folder)
    await bus.start()
    try:
        async with TaskScope() as scope:
            systemd = FakeSystemd(scope)
            await systemd.connect(bus.address)
            yield FakeHost(bus=bus, systemd=systemd)
            await systemd.disconnect()
    finally:
        await bus.kill()
