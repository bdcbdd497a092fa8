"""Keeps the registry over restarts: restores it at start, saves it soon after a change."""

import asyncio
import logging
from typing import Final

from rolemesh.gateway.registry import Registry
from rolemesh.runtime.state import StateFile

logger = logging.getLogger(__name__)

SETTLE_S: Final = 0.5
"""How long changes gather before they are written."""


class RegistryStore:
    """The one writer of the registry's state file."""

    def __init__(self, file: StateFile, registry: Registry) -> None:
        self._file = file
        self._registry = registry
        self._changed = asyncio.Event()

    @property
    def problem(self) -> str:
        """Return why the registry is not being saved, "" while it is."""
        return self._file.problem

    def restore(self) -> None:
        """Take back what was saved; a file that cannot be understood is set aside."""
        tree = self._file.load()
        if tree is None:
            return
        try:
            self._registry.restore(tree)
        except ValueError as err:
            self._file.set_aside(str(err))

    def note_change(self) -> None:
        """Have the registry saved soon."""
        self._changed.set()

    async def run(self) -> None:
        """Save after changes until cancelled, and once more then."""
        try:
            while True:
                await self._changed.wait()
                await asyncio.sleep(SETTLE_S)
                self._changed.clear()
                await asyncio.to_thread(self._file.save, self._registry.saved())
        finally:
            if self._changed.is_set():
                self._file.save(self._registry.saved())
