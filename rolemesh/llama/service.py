"""What rolemesh-llama does from the start of its llama-server on: load, serve, watch, stop.

Imported only then: it takes as long to load as a small model, and both load at the same time.
"""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Iterator
from typing import Final

from rolemesh import __version__
from rolemesh.address import UpstreamAddress
from rolemesh.llama.activity import ServerActivity, gpus_of
from rolemesh.llama.job import Job
from rolemesh.llama.readiness import Loading, Wedged, choose_trial, keep_watch
from rolemesh.llama.runtime_files import RuntimeFiles
from rolemesh.llama.server import LlamaServer, open_server
from rolemesh.llama.server_facts import ServerFacts, write_facts
from rolemesh.llama.server_process import StartedServer
from rolemesh.llama.slot_cache import PATIENCE_S, SlotCache, engine_key
from rolemesh.llama.wedge import WedgeDetector, batch_tokens
from rolemesh.llama.wedge_watch import WedgeWatch
from rolemesh.runtime.daemon import EXIT_FAILURE, EXIT_OK
from rolemesh.runtime.log import fields, stderr_is_journal
from rolemesh.runtime.notify import Notifier, watchdog_interval_s
from rolemesh.runtime.operator_events import OperatorEvent

logger = logging.getLogger(__name__)

UNWATCHED_INTERVAL_S: Final = 5.0
"""How often /health is asked when no service manager watches, for the sake of STATUS."""


def serve(job: Job, files: RuntimeFiles, started: StartedServer, notifier: Notifier) -> int:
    """Look after the llama-server until SIGTERM, SIGINT, or its end; return the exit status.

    Raises what `run` of `main` tells: how it ended, or why it cannot serve.
    """
    try:
        asyncio.run(_run_until_stopped(job, files, started, notifier))
    except Wedged:
        return EXIT_FAILURE  # said where it was found, before the llama-server was stopped
    return EXIT_OK


async def _run_until_stopped(
    job: Job, files: RuntimeFiles, started: StartedServer, notifier: Notifier
) -> None:
    """Run `_serve`, and have SIGTERM or SIGINT cancel it wherever it is."""
    with _stop_signals(notifier) as stopping:
        try:
            await _serve(job, files, started, notifier)
        except asyncio.CancelledError:
            if not stopping.is_set():
                raise
            logger.info("stopped")


@contextlib.contextmanager
def _stop_signals(notifier: Notifier) -> Iterator[asyncio.Event]:
    """Have SIGTERM and SIGINT cancel the calling task, once; the event says that they did."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    stopping = asyncio.Event()

    def stop(number: signal.Signals) -> None:
        if task is not None and not stopping.is_set():
            stopping.set()
            logger.info("%s received: stopping", number.name)
            notifier.stopping("stopping llama-server")
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    yield stopping


async def _serve(job: Job, files: RuntimeFiles, started: StartedServer, notifier: Notifier) -> None:
    """The life of a llama-server in order; ends by an error or by being cancelled."""
    async with open_server(
        started,
        sink=sys.stderr.buffer,
        line_prefix="" if stderr_is_journal() else f"{job.instance}: ",
        told=notifier.status,
    ) as server:
        _tell_facts(job, server, files)
        await _load_and_watch(job, server, UpstreamAddress.unix(str(files.socket)), notifier)


def _tell_facts(job: Job, server: LlamaServer, files: RuntimeFiles) -> None:
    facts = ServerFacts(
        version=__version__,
        server_pid=server.pid,
        model_id=job.model.model_id,
        generation=job.generation,
        args_hash=job.args_hash,
        settings_hash=job.settings_hash,
        build=job.build.version,
        program=job.command.argv[0],
        signature=job.signature,
    )
    try:
        write_facts(files.facts, facts)
    except OSError as err:
        logger.warning("%s cannot be written: %s", files.facts, err.strerror)


async def _load_and_watch(
    job: Job, server: LlamaServer, address: UpstreamAddress, notifier: Notifier
) -> None:
    def told(text: str, extension_s: float) -> None:
        notifier.status(text)
        notifier.extend_timeout(extension_s)

    logger.info("loading %s (from %s)", job.model.model_id, job.source)
    loading = Loading(
        server=server,
        address=address,
        trial=choose_trial(job.model, job.server_args),
        model_id=job.model.model_id,
        model_bytes=job.model_bytes,
        timeout_s=job.load_timeout_s,
        told=told,
    )
    await loading.finish()
    slots = _slot_cache(job, address)
    if slots is not None:
        told(f"restoring the slots of {job.model.model_id}", 2 * PATIENCE_S)
        await slots.restore()
    serving = f"serving {job.model.model_id} (from {job.source})"
    logger.info("%s", serving)
    notifier.ready(serving)

    def alive() -> None:
        notifier.watchdog()
        notifier.status(serving)

    try:
        await keep_watch(
            server=server,
            address=address,
            wedges=_wedge_watch(job, server, address, loading.first_token_s),
            interval_s=watchdog_interval_s() or UNWATCHED_INTERVAL_S,
            alive=alive,
            silent=notifier.status,
        )
    except Wedged as err:
        # The service manager takes it from here; without one, this program stops by itself.
        logger.critical("%s", err, extra=fields(event=OperatorEvent.INSTANCE_WEDGED))
        notifier.status(str(err))
        notifier.watchdog_trigger()
        raise
    except asyncio.CancelledError:
        if slots is not None:
            told(f"saving the slots of {job.model.model_id}", 2 * PATIENCE_S)
            await slots.save()
        raise


def _slot_cache(job: Job, address: UpstreamAddress) -> SlotCache | None:
    """Return where the slots are kept, None when they are not."""
    if job.slot_directory is None:
        if job.model.save_slots:
            logger.warning("save_slots has no effect: no directory of caches can be written")
        return None
    key = engine_key(job.args_hash, job.files)
    return SlotCache(directory=job.slot_directory, key=key, address=address)


def _wedge_watch(
    job: Job, server: LlamaServer, address: UpstreamAddress, first_token_s: float
) -> WedgeWatch:
    argv, environment = job.command.argv, job.command.environment
    return WedgeWatch(
        detector=WedgeDetector(
            wedge_after_s=job.wedge_after_s,
            batch_tokens=batch_tokens(argv),
            first_token_s=first_token_s,
        ),
        activity=ServerActivity(
            address=address, pid=server.pid, gpus=gpus_of(job.instance, environment, argv)
        ),
        lines_logged=lambda: server.log.line_count,
    )
