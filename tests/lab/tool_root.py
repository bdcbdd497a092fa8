"""A Debian trixie with the tools that judge packages: python -m tests.lab.tool_root [COMMAND...]

The tools' own versions decide what they find, so they are not this machine's: lintian, piuparts,
rpmlint and what builds packages come from one Debian, which mmdebstrap makes from the archive that
this machine's apt is configured for, once in a week, and which lies unpacked in the lab's cache.
Nothing that runs in it changes it: what is written goes to a scratch folder.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.cache import cache_folder, locked
from tests.lab.host import CLEAN_ENVIRONMENT
from tests.lab.host_root import bootstrap, week

SUITE = "trixie"
PACKAGES = (
    "aardvark-dns",
    "apt-utils",
    "build-essential",
    "ca-certificates",
    "cpio",
    "createrepo-c",
    "crun",
    "curl",
    "dbus",
    "debhelper",
    "debootstrap",
    "dh-python",
    "dnf",
    "dpkg-dev",
    "gnupg",
    "groff",
    "iproute2",
    "lintian",
    "man-db",
    "mmdebstrap",
    "netavark",
    "nftables",
    "piuparts",
    "pkgconf",
    "podman",
    "podman-compose",
    "polkitd",
    "procps",
    "pybuild-plugin-pyproject",
    "python3-aiohttp",
    "python3-all",
    "python3-httptools",
    "python3-jeepney",
    "python3-jsonschema",
    "python3-pip",
    "python3-sdnotify",
    "python3-setuptools",
    "python3-systemd",
    "python3-yaml",
    "rpm",
    "rpmlint",
    "systemd-dev",
    "systemd-sysv",
)
ENTER = Path(__file__).with_name("enter_root.sh")
COMMAND_TIMEOUT_S = 300


def obstacle() -> str:
    """Say in one line why nothing can run in such a root here; "" when it can."""
    if os.geteuid() != 0:
        return "a root with the tools needs root"
    for program in ("mmdebstrap", "unshare", "ip"):
        if shutil.which(program) is None:
            return f"{program} is missing here"
    return ""


def tool_root() -> Path:
    """Return the folder of this week's root, making it if it is not there.

    Raises NoRoot when that fails. It is everybody's: only what runs by `run_in` may use it.
    """
    cache = cache_folder("tool-roots")
    packages = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:8]
    root = cache / f"{SUITE}-{week()}-{packages}"
    with locked(cache):
        if not root.exists():
            part = root.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            print(f"Making a root of Debian {SUITE} with tools in {root}", file=sys.stderr)
            bootstrap(SUITE, PACKAGES, part)
            part.rename(root)
            # This week's others may be in use, by checkouts with another list of packages.
            for older in set(cache.glob(f"{SUITE}-*")) - set(cache.glob(f"{SUITE}-{week()}-*")):
                shutil.rmtree(older)
    return root


def run_in(
    root: Path,
    *command: str | Path,
    reads: Mapping[str, Path] | None = None,
    writes: Mapping[str, Path] | None = None,
    network: bool = False,
    where: str = "/",
    environment: Mapping[str, str] | None = None,
    timeout_s: float = COMMAND_TIMEOUT_S,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a root, as root, and return its status and output, stderr within stdout.

    `reads` and `writes` are folders of this machine by the (absolute) place they have in there.
    Without `network` there is only a loopback device, which is its own. Its processes end with it.
    """
    lent = [("ro", reads or {}), ("rw", writes or {})]
    binds = [
        word
        for mode, each in lent
        for target, source in each.items()
        for word in (mode, str(source), target)
    ]
    isolated = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"]
    if not network:
        isolated.append("--net")
    # Below /tmp: a user of the root's that is not root (_apt) must be able to get there.
    with tempfile.TemporaryDirectory(prefix="rolemesh-tools-", dir="/tmp") as scratch:
        Path(scratch).chmod(0o755)
        return subprocess.run(
            [*isolated, ENTER, scratch, root, where, *binds, "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env={**CLEAN_ENVIRONMENT, **(environment or {})},
            check=False,
        )


def main(command: Sequence[str]) -> int:
    """Print where the root is, or run a command in it."""
    root = tool_root()
    if not command:
        print(root)
        return 0
    done = run_in(root, *command)
    print(done.stdout, end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
