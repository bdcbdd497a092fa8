"""The life of a daemon around its asyncio main: signals, readiness, reload, exit codes."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Final

from rolemesh.errors import ConfigError, RoleMeshError, StartError, Unavailable
from rolemesh.runtime.fd_store import PassedSocket
from rolemesh.runtime.log import fields, log_problem, setup_logging, stderr_is_journal
from rolemesh.runtime.memory import keep_freed_memory, set_aside_what_is_there
from rolemesh.runtime.notify import Notifier, watchdog_interval_s
from rolemesh.runtime.operator_events import OperatorEvent
from rolemesh.runtime.predecessor import Predecessor, Told
from rolemesh.runtime.succession import Drainable, Succession
from rolemesh.runtime.successor import Estate, Successor
from rolemesh.runtime.tasks import TaskScope

logger = logging.getLogger(__name__)

EXIT_OK: Final = 0
EXIT_FAILURE: Final = 1
EXIT_CONFIG: Final = 78
"""EX_CONFIG of sysexits.h; the units do not restart on it."""


SETTLED_S: Final = 5.0
"""After so long what there is in memory is what there will be, but for requests."""

SAME_WISH_S: Final = 0.5
"""How long after a first SIGTERM or SIGINT another one adds nothing."""


Outcome = Exception | Successor | None
"""What came of a reload: it failed, another process has taken over, or it is done."""


class Lifecycle:
    """What a daemon's main is given: when to stop, when to reload, whom to tell.

    `status` makes the one-line STATUS text; `status_changed` sends it again. `environment` is that
    of the start; `predecessor` is the process to take over from, if there is one.
    """

    def __init__(
        self,
        notifier: Notifier,
        *,
        environment: Mapping[str, str] | None = None,
        predecessor: Predecessor | None = None,
    ) -> None:
        self.notifier = notifier
        self.status: Callable[[], str] = lambda: "starting"
        self._succession = Succession(notifier, environment or {}, predecessor)
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._stop_signalled = asyncio.Event()
        self._who_asked: list[asyncio.Future[Outcome]] = []
        self._is_stopping = False

    @property
    def takes_over(self) -> bool:
        """Whether this process is about to take over from another one, which still serves."""
        return self._succession.is_pending

    def passed_sockets(self) -> tuple[PassedSocket, ...]:
        """Return the listening sockets that this process goes on with; to be called once."""
        return self._succession.passed_sockets()

    def passed_locks(self) -> Mapping[str, int]:
        """Return the descriptors of the locked files that this process goes on with, by name."""
        return self._succession.passed_locks()

    async def own_state(self, on_told: Callable[[Told], None] | None = None) -> None:
        """Return once the state files are this process's own; raises StartError.

        To be called when all is accepted that may be refused, and before `serve`. `on_told` learns
        what is under way in a process to take over from, before that and up to its end.
        """
        await self._succession.own_state(on_told)

    def tell_successor(self, told: Told) -> None:
        """Tell a process that takes over, or has, what is under way here now."""
        self._succession.tell(told)

    @property
    def is_handed_over(self) -> bool:
        """Whether another process has taken over."""
        return self._succession.successor is not None

    def refuse_to_take_over(self, error: BaseException) -> None:
        """Tell the process to take over from, if there is one, why that cannot be."""
        self._succession.refuse(error)

    async def reload(self) -> Successor | None:
        """Reload as on SIGHUP, in turn with others; returns, or raises, what came of it.

        Returns the process that has taken over, if one has. Raises ConfigError when the
        configuration is refused, StartError when the new program does not come up, Unavailable
        when the daemon stops.
        """
        if self._is_stopping:
            raise _stopping()
        asked: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._who_asked.append(asked)
        self._signals.put_nowait(signal.SIGHUP)
        outcome = await asked
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def status_changed(self) -> None:
        """Send STATUS again if its text changed."""
        if not self._is_stopping:
            self.notifier.status(self._status_text())

    def _status_text(self) -> str:
        parts = (self.status(), self._succession.status, log_problem())
        return "; ".join(filter(None, parts))

    async def serve(
        self, reload: Callable[[], Awaitable[None]], estate: Estate | None = None
    ) -> None:
        """Tell READY, then reload on SIGHUP until SIGTERM or SIGINT; returns to be torn down.

        `reload` raises ConfigError to refuse; what was in force then stays in force. With `estate`,
        a reload hands over when the program on disk is another one by then; that is an end, too.
        """
        await self._succession.become_main()
        self.notifier.ready(self._status_text())
        async with TaskScope() as scope:
            interval_s = watchdog_interval_s()
            if interval_s is not None:
                _ = scope.start(self._feed_watchdog(interval_s), name="watchdog")
            _ = scope.start(self._succession.watch_predecessor(), name="predecessor")
            while (received := await self._signals.get()) is signal.SIGHUP:
                await self._reload(reload, estate)
                if self._succession.successor is not None:
                    break
            else:
                logger.info("%s received: stopping", received.name)
                self.notifier.stopping("stopping")
        self._is_stopping = True
        _settle(self._who_asked, _stopping())

    async def _reload(self, reload: Callable[[], Awaitable[None]], estate: Estate | None) -> None:
        failure: Exception | None = None
        asked, self._who_asked = self._who_asked, []
        self.notifier.reloading()
        try:
            handed_over = self._succession.to_hand_over(estate)
            if handed_over is not None:
                await self._succession.hand_over(handed_over)
            else:
                await reload()
                await self._succession.reloaded()
        except ConfigError as err:
            failure = err
            _log_refusal(err)
        except StartError as err:
            failure = err
            logger.error("%s", err, extra=fields(event=OperatorEvent.RELOAD_REFUSED))  # noqa: TRY400
        except Exception as err:
            failure = err
            logger.exception("reload failed inside RoleMesh; the daemon serves on")
        finally:
            # Without it `systemctl reload` hangs for ever. (After a hand-over it goes nowhere.)
            self.notifier.ready(self._status_text())
        _settle(asked, failure or self._succession.successor)

    async def drain(self, server: Drainable, timeout_s: float) -> None:
        """Let requests finish, for `timeout_s` once the daemon as a whole stops, then end them.

        Those of processes that handed over to this one have ended by then, too.
        """
        await self._succession.drain(server, timeout_s, self._stop_signalled)

    async def _feed_watchdog(self, interval_s: float) -> None:
        while True:
            self.notifier.watchdog()
            self.status_changed()
            await asyncio.sleep(interval_s)

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Queue SIGTERM, SIGINT and SIGHUP; a later SIGTERM or SIGINT ends the process.

        timeout(1) and some shells signal a process and then its whole group: what comes within
        SAME_WISH_S is the same wish.
        """
        loop = asyncio.get_running_loop()
        first_stop_at: float | None = None

        def received(number: signal.Signals) -> None:
            nonlocal first_stop_at
            if number is signal.SIGHUP or first_stop_at is None:
                if number is not signal.SIGHUP:
                    first_stop_at = loop.time()
                self._signals.put_nowait(number)
                if number is not signal.SIGHUP:
                    self._stop_signalled.set()
                    self._succession.stop_handing_over()
            elif loop.time() - first_stop_at > SAME_WISH_S:
                logger.warning("second %s: not waiting any longer", number.name)
                os._exit(EXIT_FAILURE)

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, received, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


def _stopping() -> Unavailable:
    return Unavailable("this daemon is stopping", reason="stopping", retry_after_s=1.0)


def _settle(asked: Iterable[asyncio.Future[Outcome]], outcome: Outcome) -> None:
    for each in asked:
        if not each.done():  # whoever asked may have left
            each.set_result(outcome)


def refusal_log() -> Callable[[ConfigError], None] | None:
    """Return what logs that `--check` refused a reload, None where a person reads stderr."""
    if not stderr_is_journal():
        return None
    setup_logging()
    return _log_refusal


def _log_refusal(error: ConfigError) -> None:
    logger.error(
        "reload refused, the old configuration stays in force:\n%s",
        error,
        extra=fields(event=OperatorEvent.RELOAD_REFUSED),
    )


def run_daemon(main: Callable[[Lifecycle], Awaitable[None]]) -> int:
    """Run a daemon's main to its end and return the exit code.

    Whatever makes a start fail is said in one record and in STATUS; READY is not sent. Where this
    process was to take over from another one, that one says it.
    """
    environment = dict(os.environ)
    predecessor = Predecessor.found(os.environ)
    setup_logging()
    keep_freed_memory()
    notifier = Notifier()
    lifecycle = Lifecycle(notifier, environment=environment, predecessor=predecessor)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_supervised(main, lifecycle))
    except RoleMeshError as err:
        if not lifecycle.takes_over:
            logger.critical("%s", err)
        notifier.status(str(err).partition("\n")[0])
        return EXIT_CONFIG if isinstance(err, ConfigError) else EXIT_FAILURE
    return EXIT_OK


async def _supervised(main: Callable[[Lifecycle], Awaitable[None]], lifecycle: Lifecycle) -> None:
    with lifecycle.handle_signals():
        asyncio.get_running_loop().call_later(SETTLED_S, set_aside_what_is_there)
        try:
            await main(lifecycle)
        except BaseException as err:
            error = _only_ours(err) if isinstance(err, BaseExceptionGroup) else None
            lifecycle.refuse_to_take_over(error or err)
            if error is None:
                raise
            raise error from err


def _only_ours(group: BaseExceptionGroup) -> RoleMeshError | None:
    """Return the first error of a group, None when there is one in it that is not on purpose."""
    # Not except*: Python 3.11.2 makes a group of what is raised in one.
    ours, others = group.split(RoleMeshError)
    if ours is None or others is not None:
        return None
    error: BaseException = ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, RoleMeshError)
    return error


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415  # optional
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
