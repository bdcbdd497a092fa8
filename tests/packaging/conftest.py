"""What is installed beside the Python code: as files, and as Debian packages."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOST_UNITS = Path("/usr/lib/systemd/system")
PROGRAMS = (
    "usr/bin/rolemesh-gateway",
    "usr/bin/rolemesh-node-agent",
    "usr/bin/rolemeshctl",
    "usr/libexec/rolemesh/rolemesh-llama",
)
PREREQUISITES_MISSING = 77


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a root directory with everything that is not Python."""
    root = tmp_path_factory.mktemp("installed")
    script = ROOT / "packaging" / "install-system-files.sh"
    subprocess.run([script], env={"PATH": "/usr/bin:/bin", "DESTDIR": str(root)}, check=True)
    return root


@pytest.fixture(scope="session")
def bootable(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `installed` with what systemd-analyze looks for: units of the host, and programs."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    root = tmp_path_factory.mktemp("bootable")
    shutil.copytree(HOST_UNITS, root / HOST_UNITS.relative_to("/"), symlinks=True)
    shutil.copytree(installed, root, dirs_exist_ok=True)
    for program in (*PROGRAMS, "bin/kill", "usr/bin/install"):
        path = root / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o755)
    return root


def build_packages(
    folder: Path, *, checkout: Path = ROOT, umask: int = 0o022
) -> Mapping[str, Path]:
    """Build into `folder`; returns name -> package. Skips the test where that is impossible."""
    command: list[str | Path] = [checkout / "packaging" / "build.sh", "deb", folder]
    done = subprocess.run(command, capture_output=True, text=True, umask=umask, check=False)
    if done.returncode == PREREQUISITES_MISSING:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name.partition("_")[0]: path for path in sorted(folder.glob("*.deb"))}


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Return the packages by their names."""
    return build_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def unpacked(
    packages: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """Return name -> directory with the package's files, and DEBIAN with its scripts."""
    folder = tmp_path_factory.mktemp("unpacked")
    for name, package in packages.items():
        subprocess.run(["dpkg-deb", "--raw-extract", package, folder / name], check=True)
    return {name: folder / name for name in packages}
