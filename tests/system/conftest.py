"""Fixtures for tests on hosts with a real systemd; without such hosts they are all skipped."""

import os
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.cache import cache_folder, locked
from tests.lab.gpu_memory import gpu_memory
from tests.lab.history import NoHistory
from tests.lab.host import CLEAN_ENVIRONMENT, Host
from tests.lab.host_root import unpack_root
from tests.lab.hosts import Lab, hosts_lab, obstacle
from tests.lab.llama_server import NoLlamaServer, llama_server_seen_at
from tests.system.earlier import earlier_packages
from tests.system.gpu_hosts import RELEASE_S, BootGpuHost, GpuHost, show_gpus
from tests.system.mesh import GPU_FOLDER, LLAMA_FOLDER, MODELS_FOLDER, Mesh, start_mesh

TIMEOUT_S = 180  # of a test; the first one also makes what all use
FIRST_TIMEOUT_S = 900
REPOSITORY = Path(__file__).parents[2]
PACKAGES_VARIABLE = "ROLEMESH_TEST_PACKAGES"
EARLIER_VARIABLE = "ROLEMESH_TEST_EARLIER_PACKAGES"

Layers = tuple[Path, ...]
InstalledRoot = Callable[[str], Layers]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests below this folder, and give them the time that hosts need."""
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.system)
        if not item.get_closest_marker("timeout"):
            first = item is ours[0]
            item.add_marker(pytest.mark.timeout(FIRST_TIMEOUT_S if first else TIMEOUT_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of each host's journal with a test that failed."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and report.when != "teardown" and isinstance(lab, Lab):
        for host in lab.hosts:
            report.sections.append((f"journal of {host.name}", host.journal_text(lines=200)))
    return report


@pytest.fixture(scope="session")
def _permitted() -> None:
    """Skip the test where hosts cannot run."""
    if reason := obstacle():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def unpacked_root(
    _permitted: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Layers]]:
    """Return the bare root of a Debian: unpacked_root("trixie")."""
    folder = tmp_path_factory.mktemp("roots")

    def unpacked(suite: str) -> Layers:
        root = folder / suite
        if not root.exists():
            unpack_root(root, suite)
        return (root,)

    yield unpacked
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def packages(_permitted: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with this checkout's .debs, which are built once in a run."""
    if named := os.environ.get(PACKAGES_VARIABLE):
        return Path(named).absolute()
    folder = tmp_path_factory.mktemp("packages")
    folder.chmod(0o755)
    with locked(cache_folder("packages")):
        built = subprocess.run(
            ["packaging/build.sh"],
            cwd=REPOSITORY,
            env=CLEAN_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert built.returncode == 0, built.stdout
        for package in (REPOSITORY / "dist").glob("*.deb"):
            shutil.copy2(package, folder)
    return folder


@pytest.fixture(scope="session")
def earlier(_permitted: None) -> Path:
    """Return a folder with the .debs of an earlier version; what needs it is skipped without one."""
    if named := os.environ.get(EARLIER_VARIABLE):
        return Path(named).absolute()
    try:
        return earlier_packages()
    except NoHistory as err:
        pytest.skip(str(err))


@pytest.fixture(scope="session")
def gpu_folder(_permitted: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two fake GPUs, the library that shows them, and its Python binding."""
    folder = tmp_path_factory.mktemp("gpus")
    show_gpus(folder, 2)
    return folder


@pytest.fixture(scope="session")
def binds(_permitted: None, packages: Path, gpu_folder: Path) -> Mapping[str, Path]:
    """Return what the tests bring to every host: packages, a llama-server, models, GPUs."""
    try:
        tree, _ = llama_server_seen_at(LLAMA_FOLDER)
    except NoLlamaServer as err:
        pytest.skip(str(err))
    models = cache_folder("models")
    return {
        "/srv/packages": packages,
        str(LLAMA_FOLDER): tree,
        str(MODELS_FOLDER): models,
        str(GPU_FOLDER): gpu_folder,
    }


@pytest.fixture(scope="session")
def session_lab(_permitted: None) -> Iterator[Lab]:
    """Return the lab in which roots with our packages are made."""
    with hosts_lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def installed_root(
    session_lab: Lab,
    unpacked_root: Callable[[str], Layers],
    binds: Mapping[str, Path],
) -> Callable[[str], Layers]:
    """Return the root of a Debian with our packages installed: installed_root("trixie")."""
    made: dict[str, Layers] = {}

    def installed(suite: str) -> Layers:
        if suite not in made:
            (host,) = session_lab.boot([suite], root=unpacked_root(suite), binds=binds)
            install(host)
            host.run("rm", "-rf", "/var/log/journal", "/var/lib/rolemesh/gateway/*")
            host.power_off()
            made[suite] = host.layers()
        return made[suite]

    return installed


def install(host: Host) -> None:
    """Install our packages as an administrator does.

    Nothing but them is installed: the host reaches no archive that anything could come from.
    """
    host.run("sh", "-c", "apt-get install -y /srv/packages/*.deb")


@pytest.fixture(scope="module")
def suite() -> str:
    """Return the Debian that a module's hosts run; modules for both have their own fixture."""
    return "trixie"


@pytest.fixture(scope="module")
def lab(_permitted: None, suite: str) -> Iterator[Lab]:
    """Return an empty lab; what a module boots in it, of one Debian, ends with the module."""
    with hosts_lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def mesh(
    lab: Lab,
    suite: str,
    installed_root: Callable[[str], Layers],
    binds: Mapping[str, Path],
) -> Mesh:
    """Return a running gateway and a running node on hosts of their own."""
    root = installed_root(suite)
    gateway, node = lab.boot(["gw", "box"], root=root, binds=binds)
    return start_mesh(lab, gateway, node)


@pytest.fixture(scope="module")
def boot_gpu_host(
    lab: Lab,
    suite: str,
    installed_root: Callable[[str], Layers],
    binds: Mapping[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BootGpuHost]:
    """Return what boots a host with GPUs of its own: boot_gpu_host("rig", gpus=4, memory={...}).

    `memory` is what the llama-servers of a model file take, in MiB by its name.
    """
    with ExitStack() as running:

        def boot(name: str, *, gpus: int, memory: Mapping[str, int]) -> GpuHost:
            folder = tmp_path_factory.mktemp(f"gpus-{name}")
            fake = show_gpus(folder, gpus)
            uuids = fake.uuids
            following = gpu_memory(fake, fixed_mib=memory, release_s=RELEASE_S)
            running.enter_context(following)
            seen = {**binds, str(GPU_FOLDER): folder}
            (host,) = lab.boot([name], root=installed_root(suite), binds=seen)
            return GpuHost(host=host, gpus=fake, uuids=uuids)

        yield boot
