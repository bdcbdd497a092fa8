"""The root of a Debian that hosts are started from: python -m tests.lab.host_root [SUITE]

Made by mmdebstrap from the archive that this machine's apt is configured for, once in a week, and
kept as an archive in the lab's cache. It has what our packages depend on, and nothing of ours.
"""

import datetime as dt
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.lab.cache import cache_folder, locked
from tests.lab.llama_server import debian_repository

DEFAULT_SUITE = "trixie"
PACKAGES = (
    "curl",
    "dbus",
    "iproute2",
    "polkitd",
    "procps",
    "python3",
    "python3-aiohttp",
    "python3-httptools",
    "python3-jeepney",
    "python3-jsonschema",
    "python3-sdnotify",
    "python3-systemd",
    "python3-uvloop",
    "python3-venv",  # for packaging/install-venv.sh
    "python3-yaml",
    "systemd-sysv",
)
# What a container has no use for, and what would work behind a test's back.
MASKED_UNITS = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dev-hugepages.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "getty.target",
    "sys-fs-fuse-connections.mount",
    "systemd-logind.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
)
# A journal that survives a power cut.
JOURNAL = "[Journal]\nStorage=persistent\n"
# The archive may stand still, so that its signed lists expire; dpkg need not sync a throw-away root.
APT = 'Acquire::Check-Valid-Until "false";\nDpkg::Options { "--force-unsafe-io"; };\n'
BUILD_TIMEOUT_S = 900


class NoRoot(Exception):
    """A root could not be made; the text has the reason."""


def unpack_root(folder: Path, suite: str = DEFAULT_SUITE) -> None:
    """Fill the (new) folder with a Debian that can be booted as a container."""
    archive = cached_archive(suite)
    folder.mkdir()
    _run(["tar", "-C", folder, "--numeric-owner", "-I", "zstd", "-xf", archive])
    _settle(folder)


def cached_archive(suite: str) -> Path:
    """Return the archive of this week's root, making it if it is not there."""
    cache = cache_folder("host-roots")
    archive = cache / f"{suite}-{_key()}.tar.zst"
    with locked(cache):
        if not archive.exists():
            _build(archive, suite)
            for older in set(cache.glob(f"{suite}-*.tar.zst")) - {archive}:
                older.unlink()
    return archive


def week() -> str:
    """Return the name of this week: what is made from an archive is made anew in each."""
    year, number, _ = dt.datetime.now(dt.UTC).isocalendar()
    return f"{year}-w{number:02}"


def bootstrap(suite: str, packages: Sequence[str], target: Path) -> None:
    """Make a Debian with these packages: a folder, or a tar where the target ends in .tar."""
    options = ["--quiet", "--variant=apt", f"--include={','.join(packages)}"]
    valid = '--aptopt=Acquire::Check-Valid-Until "false"'
    _run(["mmdebstrap", *options, valid, suite, target, debian_repository()])


def _key() -> str:
    packages = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:8]
    return f"{week()}-{packages}"


def _build(archive: Path, suite: str) -> None:
    print(f"Making a root of Debian {suite} in {archive}", file=sys.stderr, flush=True)
    # Its _apt user may not enter everybody's folder for temporary files.
    with tempfile.TemporaryDirectory(prefix="rolemesh-root-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        part = Path(folder, "root.tar")
        bootstrap(suite, PACKAGES, part)
        compressed = archive.with_suffix(".part")
        _run(["zstd", "--quiet", "--force", "-3", "-T0", part, "-o", compressed])
        compressed.rename(archive)


def _settle(root: Path) -> None:
    """Make the root one of a container in a lab: no names of its own, no timers."""
    for name in ("etc/hostname", "etc/machine-id", "etc/resolv.conf"):
        (root / name).unlink(missing_ok=True)
    for unit in MASKED_UNITS:
        masked = root / "etc/systemd/system" / unit
        masked.unlink(missing_ok=True)
        masked.symlink_to("/dev/null")
    _write(root / "etc/systemd/journald.conf.d/lab.conf", JOURNAL)
    _write(root / "etc/apt/apt.conf.d/99lab", APT)


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)


def _run(command: list[str | Path]) -> None:
    if shutil.which(command[0]) is None:
        msg = f"{command[0]} is missing here"
        raise NoRoot(msg)
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stderr.splitlines()[-8:])
        msg = f"{command[0]} failed with status {done.returncode}:\n{tail}"
        raise NoRoot(msg)


if __name__ == "__main__":
    print(cached_archive(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_SUITE))
