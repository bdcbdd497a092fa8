"""The life of a daemon around its asyncio main: signals, readiness, reload, exit codes."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final

from rolemesh.errors import ConfigError, RoleMeshError, Unavailable
from rolemesh.runtime.log import fields, log_problem, setup_logging, stderr_is_journal
from rolemesh.runtime.memory import keep_freed_memory, set_aside_what_is_there
from rolemesh.runtime.notify import Notifier, watchdog_interval_s
from rolemesh.runtime.operator_events import OperatorEvent
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


class Lifecycle:
    """What a daemon's main is given: when to stop, when to reload, whom to tell.

    `status` makes the one-line STATUS text; `status_changed` sends it again.
    """

    def __init__(self, notifier: Notifier) -> None:
        self.notifier = notifier
        self.status: Callable[[], str] = lambda: "starting"
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._who_asked: list[asyncio.Future[Exception | None]] = []
        self._is_stopping = False

    async def reload(self) -> None:
        """Reload as on SIGHUP, in turn with others; returns, or raises, what came of it.

        Raises ConfigError when the configuration is refused, Unavailable when the daemon stops.
        """
        if self._is_stopping:
            raise _stopping()
        asked: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._who_asked.append(asked)
        self._signals.put_nowait(signal.SIGHUP)
        failure = await asked
        if failure is not None:
            raise failure

    def status_changed(self) -> None:
        """Send STATUS again if its text changed."""
        self.notifier.status(self._status_text())

    def _status_text(self) -> str:
        return "; ".join(filter(None, (self.status(), log_problem())))

    async def serve(self, reload: Callable[[], Awaitable[None]]) -> None:
        """Tell READY, then reload on SIGHUP until SIGTERM or SIGINT; returns to be torn down.

        `reload` raises ConfigError to refuse; what was in force then stays in force.
        """
        self.notifier.ready(self._status_text())
        async with TaskScope() as scope:
            interval_s = watchdog_interval_s()
            if interval_s is not None:
                _ = scope.start(self._feed_watchdog(interval_s), name="watchdog")
            while (received := await self._signals.get()) is signal.SIGHUP:
                await self._reload(reload)
        logger.info("%s received: stopping", received.name)
        self.notifier.stopping("stopping")
        self._is_stopping = True
        _settle(self._who_asked, _stopping())

    async def _reload(self, reload: Callable[[], Awaitable[None]]) -> None:
        failure: Exception | None = None
        asked, self._who_asked = self._who_asked, []
        self.notifier.reloading()
        try:
            await reload()
        except ConfigError as err:
            failure = err
            _log_refusal(err)
        except Exception as err:
            failure = err
            logger.exception("reload failed inside RoleMesh; the daemon serves on")
        finally:
            self.notifier.ready(self._status_text())  # without it `systemctl reload` hangs for ever
        _settle(asked, failure)

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


def _settle(asked: Iterable[asyncio.Future[Exception | None]], failure: Exception | None) -> None:
    for each in asked:
        if not each.done():  # whoever asked may have left
            each.set_result(failure)


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

    Whatever makes a start fail is said in one record and in STATUS; READY is not sent.
    """
    setup_logging()
    keep_freed_memory()
    notifier = Notifier()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_supervised(main, Lifecycle(notifier)))
    except RoleMeshError as err:
        logger.critical("%s", err)
        notifier.status(str(err).partition("\n")[0])
        return EXIT_CONFIG if isinstance(err, ConfigError) else EXIT_FAILURE
    return EXIT_OK


async def _supervised(main: Callable[[Lifecycle], Awaitable[None]], lifecycle: Lifecycle) -> None:
    with lifecycle.handle_signals():
        asyncio.get_running_loop().call_later(SETTLED_S, set_aside_what_is_there)
        try:
            await main(lifecycle)
        except BaseExceptionGroup as group:
            # Not except*: Python 3.11.2 makes a group of what is raised in one.
            ours, others = group.split(RoleMeshError)
            if ours is None or others is not None:
                raise
            raise _first(ours) from group


def _first(group: BaseExceptionGroup[RoleMeshError]) -> RoleMeshError:
    error: BaseException = group
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
