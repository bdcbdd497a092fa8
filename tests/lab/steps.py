"""Steps of an installation: programs run one after another, of which none may hang or fail unseen."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

LAST_LINES = 8

Command = Sequence[str | Path]


class StepFailed(Exception):
    """A step could not be done; the text is what it was, and its last lines."""


def run_step(command: Command, *, timeout_s: float) -> str:
    """Run one step and return its output; raises StepFailed."""
    step = " ".join(str(word) for word in command if not str(word).startswith("-o"))
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        msg = f"{step}: {err}"
        raise StepFailed(msg) from err
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-LAST_LINES:])
        msg = f"{step} failed with status {done.returncode}:\n{tail}"
        raise StepFailed(msg)
    return done.stdout
