"""Gets LiteLLM, a proxy of another kind: python -m tests.lab.litellm

It goes into a virtual environment of its own in the lab's cache: 700 MB, installed in a minute or
two through this machine's own pip configuration.
"""

import sys
from pathlib import Path

from tests.lab.cache import cache_folder, locked
from tests.lab.steps import StepFailed, run_step

PACKAGE = "litellm[proxy]==1.106.2"
INSTALL_TIMEOUT_S = 540


class NoLiteLlm(Exception):
    """LiteLLM could not be installed; the text names cause and remedy."""


def litellm() -> Path:
    """Return the path of LiteLLM's proxy, installed first where it is not yet."""
    folder = cache_folder("litellm")
    program, record = folder / "venv/bin/litellm", folder / "installed"
    recipe = f"{PACKAGE} for {Path(sys.executable).resolve()} at {folder}\n"
    with locked(folder):
        if not record.exists() or record.read_text() != recipe:
            record.unlink(missing_ok=True)
            _run(sys.executable, "-m", "venv", "--clear", folder / "venv")
            _run(folder / "venv/bin/python", "-m", "pip", "install", "--quiet", PACKAGE)
            record.write_text(recipe)
    return program


def _run(*command: str | Path) -> None:
    try:
        run_step(command, timeout_s=INSTALL_TIMEOUT_S)
    except StepFailed as err:
        raise NoLiteLlm(str(err)) from err


def main() -> int:
    """Print the path of LiteLLM."""
    try:
        print(litellm())
    except NoLiteLlm as err:
        print(err, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
