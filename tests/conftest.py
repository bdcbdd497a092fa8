"""Fixtures for all tests, what every test is checked for, and what a run may not skip."""

import inspect
import os
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.lab import leftovers, notify, nvml, processes, tool_root
from tests.lab.certificates import Authority
from tests.lab.clients import Clients, NoClients
from tests.lab.clients import clients as find_clients
from tests.lab.host_root import NoRoot
from tests.lab.llama_server import NoLlamaServer
from tests.lab.llama_server import llama_server as find_llama_server
from tests.lab.models import TinyModel
from tests.lab.models import make_model as make_tiny_model
from tests.lab.rpms import make_rpms

LLAMA_TIMEOUT_S = 180  # of a test with a real llama-server, which shares its cores with others
CLIENTS_TIMEOUT_S = 600  # of a test with the clients of others: the first one installs them

os.environ[leftovers.RUN_MARK] = secrets.token_hex(8)


# --- what every test is checked for ---------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process behind, or a task if it has an event loop."""
    check = leftovers.ProcessCheck()
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("no_task_left_behind")
    yield
    check.assert_nothing_left()


@pytest.fixture
async def no_task_left_behind() -> AsyncIterator[None]:
    """Fail a test that leaves a task behind."""
    yield
    await leftovers.assert_no_task_left()


# --- real parts -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def llama_server() -> Path:
    """Path of a real llama-server; the test is skipped where there is none."""
    try:
        return find_llama_server()
    except NoLlamaServer as err:
        pytest.skip(str(err))


@pytest.fixture(scope="session")
def clients() -> Clients:
    """Return the clients of others; the test is skipped where they cannot be installed."""
    try:
        return find_clients()
    except NoClients as err:
        pytest.skip(str(err))


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return a certificate authority of this run; authority.sign() makes certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with rpms of the checkout and what belongs to them, see make_rpms."""
    if reason := tool_root.obstacle():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("rpms")
    try:
        make_rpms(folder)
    except NoRoot as err:
        pytest.skip(str(err))
    return folder


@pytest.fixture
def make_model() -> Callable[..., Path]:
    """Return the path of a tiny model: make_model("tiny-a", says="...", loop=True)."""

    def make(name: str = "tiny", **options: Any) -> Path:
        return make_tiny_model(TinyModel(name=name, **options))

    return make


@pytest.fixture
def fake_gpus(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> nvml.FakeGpus:
    """GPUs that do not exist (none at first), for this process and all that the test starts."""
    gpus = nvml.FakeGpus(short_path)
    for name, value in gpus.environment.items():
        monkeypatch.setenv(name, value)
    nvml.load_shim_here()
    return gpus


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Return an empty folder whose path leaves room for the 107 bytes of a UNIX socket's."""
    folder = Path(tempfile.mkdtemp(prefix="rm-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def notify_socket(short_path: Path) -> AsyncIterator[notify.NotifySocket]:
    """Return the service manager's end of $NOTIFY_SOCKET."""
    with notify.notify_socket(short_path) as recorder:
        yield recorder


@pytest.fixture
async def start_program(tmp_path: Path) -> AsyncIterator[Callable[..., processes.Program]]:
    """Start programs that are stopped after the test, which fails if they leave processes."""
    started: list[processes.Program] = []

    def start(
        command: Sequence[str | Path], environment: Mapping[str, str] | None = None
    ) -> processes.Program:
        log = tmp_path / f"program-{len(started)}.log"
        program = processes.start_program(command, log=log, environment=environment)
        started.append(program)
        return program

    yield start
    for program in reversed(started):
        await program.stop()
    for program in started:
        await program.assert_nothing_left()


# --- marks, and what may not be skipped -----------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --must-run."""
    parser.addoption(
        "--must-run",
        action="append",
        default=[],
        metavar="MARK",
        help="fail the run if a test with this mark is skipped, or if none has it",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a real llama-server or others' clients; give them the time needed."""
    for item in items:
        if "clients" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.clients)
        if item.get_closest_marker("clients"):
            item.add_marker(pytest.mark.timeout(CLIENTS_TIMEOUT_S))
        if "llama_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.llama)
        if item.get_closest_marker("llama") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LLAMA_TIMEOUT_S))


_passed_marks: Counter[str] = Counter()
_skipped_marks: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count, for each mark, how many tests were skipped and how many ran."""
    if report.skipped:
        _skipped_marks.update(report.keywords)
    elif report.when == "call":
        _passed_marks.update(report.keywords)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that did not run what --must-run asks for."""
    for mark in session.config.getoption("--must-run"):
        if _skipped_marks[mark] or not _passed_marks[mark]:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say which --must-run was not met."""
    for mark in config.getoption("--must-run"):
        skipped, ran = _skipped_marks[mark], _passed_marks[mark]
        if skipped or not ran:
            line = f"--must-run {mark}: {skipped} of these tests were skipped, {ran} ran"
            terminalreporter.write_line(line, red=True)
