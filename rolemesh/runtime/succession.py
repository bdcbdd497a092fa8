"""The place of a process among those of its daemon: whom it takes over from, and who follows."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from rolemesh.errors import ConfigError
from rolemesh.runtime import handover
from rolemesh.runtime.fd_store import PassedSocket, take_passed_sockets
from rolemesh.runtime.notify import Notifier
from rolemesh.runtime.predecessor import Predecessor, Told
from rolemesh.runtime.successor import Estate, Successor, SuccessorStart, program_identity
from rolemesh.runtime.tasks import TaskScope

logger = logging.getLogger(__name__)

END_S: Final = 1.5
"""How long a process whose time is over may take to end."""


class Drainable(Protocol):
    """What serves requests, and lets those under way finish."""

    async def drain(self, timeout_s: float | None) -> None:
        """Take no new requests; let those there are finish, for so long (None: without a limit)."""

    def hurry(self, timeout_s: float) -> None:
        """Bound a drain that is under way: so long from now."""


class Succession:
    """A daemon's life beyond one process.

    `environment` is that of this process's start, `predecessor` the one to take over from, if any.
    """

    def __init__(
        self,
        notifier: Notifier,
        environment: Mapping[str, str],
        predecessor: Predecessor | None,
    ) -> None:
        self._notifier = notifier
        self._environment = environment
        self._program = program_identity()
        self._predecessor = predecessor
        self._start: SuccessorStart | None = None
        self._estate: Estate | None = None
        self.is_pending = predecessor is not None
        """Whether another process still is the main one, and this one about to be."""
        self.successor: Successor | None = None
        if predecessor is not None:
            notifier.hold()

    # -- from a predecessor ----------------------------------------------------------------

    def passed_sockets(self) -> tuple[PassedSocket, ...]:
        """Return the listening sockets to go on with; to be called once."""
        if self._predecessor is not None:
            return self._predecessor.sockets
        return take_passed_sockets(os.environ)

    def passed_locks(self) -> Mapping[str, int]:
        """Return the descriptors of the locked files to go on with, by name."""
        return {} if self._predecessor is None else self._predecessor.locks

    async def own_state(self, on_told: Callable[[Told], None] | None = None) -> None:
        """Return once the state files are this process's own; raises StartError.

        `on_told` learns what is under way in the predecessor, before that and up to its end.
        """
        if self._predecessor is not None:
            self._predecessor.on_told = on_told
            await self._predecessor.prepared()

    async def become_main(self) -> None:
        """Return once this is the main process; raises StartError. It accepts by now."""
        if self._predecessor is not None:
            await self._predecessor.accepting()
            self.is_pending = False
            self._notifier.let_go()

    def refuse(self, error: BaseException) -> None:
        """Tell the process to take over from, if there is one, why that cannot be."""
        if self._predecessor is not None and self.is_pending:
            self._predecessor.refused(error)

    @property
    def status(self) -> str:
        """Say that an earlier process still ends, "" when this is the only one."""
        is_alone = self._predecessor is None or self._predecessor.is_gone
        return "" if is_alone else "an earlier process ends its requests"

    async def watch_predecessor(self) -> None:
        """Return once it has ended."""
        if self._predecessor is not None and not self._predecessor.is_gone:
            await self._predecessor.watch()

    async def reloaded(self) -> None:
        """Have the predecessor follow the configuration, too."""
        if self._predecessor is not None:
            await self._predecessor.reload()

    # -- to a successor --------------------------------------------------------------------

    def to_hand_over(self, estate: Estate | None) -> Estate | None:
        """Return what is to be handed over now, as the program on disk is another one.

        None if it is not, or if that cannot be done, which is said.
        """
        if not handover.is_replaced(self._program, program_identity()):
            return None
        obstacle = handover.obstacle(self._environment, os.getpid())
        if estate is None:
            obstacle = "a daemon that runs llama-servers itself ends with them"
        if obstacle:
            logger.warning(
                "the program was replaced since this process began; a restart runs the new one, a "
                "reload does not: %s",
                obstacle,
            )
            return None
        return estate

    async def hand_over(self, estate: Estate) -> None:
        """Have the program on disk take over; raises ConfigError or StartError, and serves on."""
        self._start, self._estate = SuccessorStart(self._environment, estate), estate
        try:
            self.successor = await self._start.run()
        finally:
            self._start = None
        # In this order: whoever reads "yours" may speak to the manager.
        self._notifier.hand_over(self.successor.pid)
        self.successor.channel.send("yours")
        await self._follow(estate)
        logger.info(
            "handed over to process %d, version %s; what is under way here ends here",
            self.successor.pid,
            self.successor.version,
        )

    def tell(self, told: Told) -> None:
        """Tell a process that takes over, or has, what is under way here now."""
        if self._start is not None:
            self._start.tell(told)
        elif self.successor is not None:
            self.successor.channel.send("told", told=told)

    def stop_handing_over(self) -> None:
        """Have a hand-over that is under way fail, as the daemon is to stop."""
        if self._start is not None:
            self._start.give_up()

    # -- the end ---------------------------------------------------------------------------

    async def drain(self, server: Drainable, timeout_s: float, signalled: asyncio.Event) -> None:
        """Let requests finish, those of the predecessor as well, which has ended then.

        They have `timeout_s`; after a hand-over, from when the daemon as a whole is to stop or this
        process is `signalled`.
        """
        async with TaskScope() as scope:
            gone = scope.start(self.watch_predecessor(), name="end of the predecessor")
            if self.successor is None:
                late = scope.start(self._stop_predecessor(timeout_s), name="stop it")
                await server.drain(timeout_s)
            else:
                hurry = self._hurry(server, self.successor, timeout_s, signalled)
                late = scope.start(hurry, name="hurry")
                await server.drain(None)
            await asyncio.wait((gone, late), return_when=asyncio.FIRST_COMPLETED)

    async def _stop_predecessor(self, within_s: float) -> None:
        """Have it end, and return when it should have."""
        if self._predecessor is not None:
            self._predecessor.stop(within_s)
        await asyncio.sleep(within_s + END_S)

    async def _hurry(
        self, server: Drainable, successor: Successor, timeout_s: float, signalled: asyncio.Event
    ) -> None:
        async with TaskScope() as scope:
            told = scope.start(self._obey(successor, timeout_s), name="word of the successor")
            asked = scope.start(signalled.wait(), name="signal")
            _ = await asyncio.wait((told, asked), return_when=asyncio.FIRST_COMPLETED)
            within_s = told.result() if told.done() else timeout_s
            if within_s is None:  # a successor that is gone: what is here goes on
                await asked
                within_s = timeout_s
        server.hurry(within_s)
        await self._stop_predecessor(within_s)

    async def _obey(self, successor: Successor, timeout_s: float) -> float | None:
        """Do as the successor says; returns how long requests have once the daemon is to stop."""
        while (message := await successor.channel.receive()) is not None:
            if message.say == "stop":
                return float(message.fields.get("within_s", timeout_s))
            if message.say == "reload" and self._estate is not None:
                await self._follow(self._estate)
                successor.channel.send("reloaded")
        return None

    async def _follow(self, estate: Estate) -> None:
        """Have the requests that end here, and in the predecessor, follow the configuration."""
        await self.reloaded()
        try:
            estate.follow()
        except ConfigError as err:
            logger.info("the configuration is not one of this version: %s", err)
        except Exception:
            # The modules on disk are another version's.
            logger.exception("cannot follow the configuration any more")
