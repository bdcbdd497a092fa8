"""What a process of an agent leaves to the next one: units, locks, and what requests still use.

The units are the new process's from the moment on in which it is told that it may go on; so no slot
is given out twice, and nothing is unloaded that requests use in the old one.
"""

import contextlib
from collections.abc import Awaitable, Callable, Mapping

from rolemesh import jsonread
from rolemesh.agent.fleet import Fleet
from rolemesh.agent.slots import Use
from rolemesh.names import InstanceName
from rolemesh.runtime.fd_store import PassedSocket
from rolemesh.runtime.predecessor import Told
from rolemesh.runtime.successor import Estate


class Heritage:
    """Holds a fleet while another process takes over; `tell` reaches that one.

    `pause` has the agent ask nobody and take no requests, `resume` takes that back.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        tell: Callable[[Told], None],
        pause: Callable[[], Awaitable[None]],
        resume: Callable[[], Awaitable[None]],
    ) -> None:
        self._fleet = fleet
        self._tell = tell
        self._pause = pause
        self._resume = resume
        self._is_released = False

    def estate(
        self,
        sockets: Callable[[], tuple[PassedSocket, ...]],
        locks: Callable[[], Mapping[str, int]],
    ) -> Estate:
        """Return what is handed over."""
        return Estate(
            sockets=sockets,
            locks=locks,
            release=self._release,
            keep=self._keep,
            follow=lambda: None,
        )

    async def _release(self) -> Told:
        self._is_released = True
        self._fleet.on_less_use = lambda: self._tell(told_uses(self._fleet))
        self._fleet.hold()
        await self._pause()
        return told_uses(self._fleet)

    async def _keep(self) -> None:
        if self._is_released:
            self._is_released = False
            self._fleet.go_on()
            await self._resume()


def told_uses(fleet: Fleet) -> Told:
    """Return what requests use, as it is told."""
    uses = fleet.in_use().items()
    return {"uses": {name: {"slots": use.held, "requests": use.requests} for name, use in uses}}


def uses_from(told: Told) -> dict[InstanceName, Use]:
    """Return what was told; what another version says otherwise is left out."""
    uses = told.get("uses")
    found: dict[InstanceName, Use] = {}
    for name, use in uses.items() if isinstance(uses, dict) else ():
        with contextlib.suppress(ValueError):
            fields = jsonread.as_object(use)
            held = jsonread.get_int(fields, "slots")
            found[InstanceName(name)] = Use(held, jsonread.get_int(fields, "requests"))
    return found
