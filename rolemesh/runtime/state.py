"""State files: written whole or not at all, set aside when they cannot be read.

Losing state never stops a daemon: it serves on, and `problem` says since when nothing is saved.
"""

import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from rolemesh.errors import ConfigError, Problem

logger = logging.getLogger(__name__)


def require_directory(path: Path) -> Path:
    """Return the state directory, made if need be; raises ConfigError when it is not writable."""
    try:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as err:
        message = (
            f"cannot keep state in {path}: {err.strerror}; make it writable for uid "
            f"{os.geteuid()}, or name another directory with --state-dir or "
            "$ROLEMESH_STATE_DIRECTORY"
        )
        raise ConfigError((Problem(where="state directory", key="", message=message),)) from err


class StateFile:
    """One JSON file; the only writer of it."""

    def __init__(self, path: Path, *, mode: int = 0o640) -> None:
        self.path = path
        self.problem = ""
        self._mode = mode

    def load(self) -> Any:
        """Return what was saved, None when there is nothing usable.

        A file that cannot be understood is renamed to `*.corrupt`, for a person to look at.
        """
        try:
            return json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except OSError as err:
            logger.warning("cannot read %s: %s", self.path, err.strerror)
        except (ValueError, RecursionError) as err:
            self.set_aside(str(err))
        return None

    def set_aside(self, why: str) -> None:
        """Rename the file to `*.corrupt` because its content cannot be used."""
        aside = self.path.with_suffix(self.path.suffix + ".corrupt")
        logger.warning("%s is corrupt (%s); kept as %s", self.path, why, aside.name)
        try:
            self.path.replace(aside)
        except OSError as err:
            logger.warning("cannot rename %s: %s", self.path, err.strerror)

    def save(self, tree: Any) -> None:
        """Replace the file atomically; a failure is logged once and kept in `problem`."""
        try:
            replace_file(self.path, json.dumps(tree).encode(), mode=self._mode)
        except OSError as err:
            if not self.problem:
                since = time.strftime("%H:%M:%S")
                self.problem = f"{self.path.name} not saved since {since}: {err.strerror}"
                logger.error("%s (%s)", self.problem, self.path)  # noqa: TRY400
        else:
            self.problem = ""


def replace_file(path: Path, data: bytes, *, mode: int = 0o640, durable: bool = True) -> None:
    """Write a file whole or not at all; raises OSError.

    `durable`: it shall outlive a loss of power; what need not is written faster.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
