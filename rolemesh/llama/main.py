"""Composition root of rolemesh-llama: options -> job -> one llama-server; `service` has the rest.

A request waits for what is done and imported here. So nothing here needs an event loop.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rolemesh import __version__
from rolemesh.config import cli
from rolemesh.config.settings import NodeSettings
from rolemesh.errors import ConfigError, RoleMeshError
from rolemesh.llama.build import Builds, cache_directory
from rolemesh.llama.job import Job, prepare_job
from rolemesh.llama.leftovers import LeftProcesses, wait_for_leftovers
from rolemesh.llama.node_directory import load_settings
from rolemesh.llama.parameters import read_parameters
from rolemesh.llama.runtime_files import RuntimeFiles, hold_lock
from rolemesh.llama.server_process import ServerEnded, start_server
from rolemesh.names import InstanceName, parse_instance
from rolemesh.runtime.log import setup_logging
from rolemesh.runtime.notify import Notifier

logger = logging.getLogger(__name__)

PARAMETERS_DIRECTORY: Final = Path("/run/rolemesh/llama")
LOCK_WAIT_S: Final = 15.0
EXIT_FAILURE: Final = 1


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
    _end_on_signals()
    try:
        return _run(options, notifier)
    except RoleMeshError as err:
        logger.critical("%s", err)
        notifier.status(_one_line(err))
        return _exit_status(err)


def _end_on_signals() -> None:
    """Have SIGTERM and SIGINT end this process, until `service` knows better.

    A llama-server that has been started by then is killed by the kernel.
    """

    def end(_number: int, _frame: object) -> None:
        sys.exit(cli.EXIT_OK)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _run(options: argparse.Namespace, notifier: Notifier) -> int:
    def waiting(holder: str) -> None:
        notifier.status(f"waiting for {holder}, to end")

    files = RuntimeFiles.of(options.instance, os.environ)
    job = _prepare(options, files)
    wait_for_leftovers(options.instance, wait_s=LOCK_WAIT_S, waiting=waiting)
    with hold_lock(files, wait_s=LOCK_WAIT_S, waiting=waiting) as lock_fd:
        # Only now: whose lock it is, whose socket it is.
        files.remove_socket()
        try:
            started = start_server(job.command, lock_fd=lock_fd)
            # Imported here: the llama-server loads its model meanwhile.
            from rolemesh.llama import service  # noqa: PLC0415

            return service.serve(job, files, started, notifier)
        finally:
            files.remove_socket()
            files.remove_facts()


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
    parameters = read_parameters(options.parameters)
    cache = cache_directory(os.environ)
    settings = load_settings(
        cli.source_from(options, program="node"),
        options.instance,
        parameters,
        in_unit="INVOCATION_ID" in os.environ,
    )
    return prepare_job(
        settings=settings,
        instance=options.instance,
        parameters=parameters,
        parameters_path=options.parameters,
        socket=files.socket,
        environment=os.environ,
        builds=Builds(cache),
        slot_directory=_slot_directory(settings, cache, options.instance),
    )


def _slot_directory(
    settings: NodeSettings, cache: Path | None, instance: InstanceName
) -> Path | None:
    if not any(model.save_slots for model in settings.models.values()):
        return None
    from rolemesh.llama.slot_cache import make_slot_directory  # noqa: PLC0415

    return make_slot_directory(cache, instance)


def _one_line(err: RoleMeshError) -> str:
    first, *others = str(err).splitlines() or ["failed"]
    return f"{first} (and {len(others)} more problems)" if others else first


def _exit_status(err: RoleMeshError) -> int:
    match err:
        case ConfigError() | LeftProcesses():
            # Starting it again would not help.
            return cli.EXIT_CONFIG
        case ServerEnded(could_not_run=True):
            return cli.EXIT_CONFIG
        case ServerEnded(status=status) if status < 0:
            return 128 - status
        case _:
            return EXIT_FAILURE
