"""Composition root of rolemesh-llama: options -> job -> one llama-server, from start to end."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rolemesh import __version__
from rolemesh.address import UpstreamAddress
from rolemesh.config import cli
from rolemesh.errors import ConfigError, RoleMeshError
from rolemesh.llama.job import Job, prepare_job
from rolemesh.llama.parameters import read_parameters
from rolemesh.llama.readiness import Loading, choose_trial, keep_watch
from rolemesh.llama.runtime_files import RuntimeFiles, hold_lock
from rolemesh.llama.server import LlamaServer, ServerEnded, open_server
from rolemesh.names import InstanceName, parse_instance
from rolemesh.runtime.daemon import EXIT_CONFIG, EXIT_FAILURE, EXIT_OK
from rolemesh.runtime.log import setup_logging, stderr_is_journal
from rolemesh.runtime.notify import Notifier, watchdog_interval_s

logger = logging.getLogger(__name__)

PARAMETERS_DIRECTORY: Final = Path("/run/rolemesh/llama")
LOCK_WAIT_S: Final = 15.0
UNWATCHED_INTERVAL_S: Final = 5.0
"""How often /health is asked when no service manager watches, for the sake of STATUS."""


def main() -> None:
    """Run rolemesh-llama and exit with its status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one llama-server until SIGTERM or its end; return the exit status.

    0: told to stop. 78: it cannot run as configured. 128+N: the llama-server was killed by signal
    N. 1: anything else. The reason is in the log and in STATUS.
    """
    options = _parse(arguments)
    setup_logging(
        options.instance, program="rolemesh-llama", constant={"instance": options.instance}
    )
    notifier = Notifier()
    try:
        files = RuntimeFiles.of(options.instance, os.environ)
        job = _prepare(options, files)
        asyncio.run(_run_until_stopped(job, files, notifier))
    except RoleMeshError as err:
        logger.critical("%s", err)
        notifier.status(_one_line(err))
        return _exit_status(err)
    return EXIT_OK


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rolemesh-llama", description=__doc__)
    parser.add_argument(
        "instance", type=_instance, metavar="INSTANCE", help="gpuN, gpuN-NAME or cpuN"
    )
    parser.add_argument(
        "--parameters",
        type=Path,
        metavar="FILE",
        help=f"what to run, as the agent wrote it (default {PARAMETERS_DIRECTORY}/INSTANCE.json)",
    )
    cli.add_source_options(parser)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    options = parser.parse_args(arguments)
    options.parameters = options.parameters or PARAMETERS_DIRECTORY / f"{options.instance}.json"
    return options


def _instance(text: str) -> InstanceName:
    try:
        return parse_instance(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err)) from err


def _prepare(options: argparse.Namespace, files: RuntimeFiles) -> Job:
    files.prepare()
    return prepare_job(
        settings=cli.load_node_settings(options),
        instance=options.instance,
        parameters=read_parameters(options.parameters),
        parameters_path=options.parameters,
        socket=files.socket,
        environment=os.environ,
    )


async def _run_until_stopped(job: Job, files: RuntimeFiles, notifier: Notifier) -> None:
    """Run `_serve`, and have SIGTERM or SIGINT cancel it wherever it is."""
    with _stop_signals(notifier) as stopping:
        try:
            await _serve(job, files, notifier)
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


async def _serve(job: Job, files: RuntimeFiles, notifier: Notifier) -> None:
    """The life of a llama-server in order; ends by an error or by being cancelled."""

    def waiting(holder: str) -> None:
        notifier.status(f"waiting for {holder}, to end")

    async with hold_lock(files, wait_s=LOCK_WAIT_S, waiting=waiting) as lock_fd:
        # Only now: whose lock it is, whose socket it is.
        files.remove_socket()
        try:
            async with open_server(
                job.command,
                lock_fd=lock_fd,
                sink=sys.stderr.buffer,
                line_prefix="" if stderr_is_journal() else f"{job.instance}: ",
                told=notifier.status,
            ) as server:
                await _load_and_watch(
                    job, server, UpstreamAddress.unix(str(files.socket)), notifier
                )
        finally:
            files.remove_socket()


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
        trial=choose_trial(job.model.model_id, job.server_args),
        model_id=job.model.model_id,
        model_bytes=job.model_bytes,
        timeout_s=job.load_timeout_s,
        told=told,
    )
    await loading.finish()
    serving = f"serving {job.model.model_id} (from {job.source})"
    logger.info("%s", serving)
    notifier.ready(serving)

    def alive() -> None:
        notifier.watchdog()
        notifier.status(serving)

    await keep_watch(
        server=server,
        address=address,
        interval_s=watchdog_interval_s() or UNWATCHED_INTERVAL_S,
        alive=alive,
        silent=notifier.status,
    )


def _one_line(err: RoleMeshError) -> str:
    first, *others = str(err).splitlines() or ["failed"]
    return f"{first} (and {len(others)} more problems)" if others else first


def _exit_status(err: RoleMeshError) -> int:
    match err:
        case ConfigError():
            return EXIT_CONFIG
        case ServerEnded(could_not_run=True):
            return EXIT_CONFIG
        case ServerEnded(status=status) if status < 0:
            return 128 - status
        case _:
            return EXIT_FAILURE
