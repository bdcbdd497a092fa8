"""A clock that is stepped for some programs only: the machine's own is everybody's.

A test makes a `StepClock` in a folder that the programs can read, starts them with `environment`,
and steps it whenever it likes; clock_shim.c says how.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("clock_shim.c")
LIBRARY = "clock.so"


class StepClock:
    """The time of day of those who run with `environment`; the folder is seen by them at `seen_at`."""

    def __init__(self, folder: Path, *, seen_at: Path) -> None:
        self.folder = folder
        self._step = folder / "step"
        self._seen_at = seen_at
        command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([*command, "-o", folder / LIBRARY, SOURCE], check=True)
        self.step(0)

    @property
    def environment(self) -> Mapping[str, str]:
        """What a program needs in its environment, from its start."""
        library, step = self._seen_at / LIBRARY, self._seen_at / self._step.name
        return {"LD_PRELOAD": str(library), "CLOCK_STEP": str(step)}

    def step(self, seconds: int) -> None:
        """Let the time of day be so many seconds after the real one, at once."""
        part = self._step.with_suffix(".part")
        part.write_text(f"{seconds}\n")
        part.rename(self._step)
