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
        self._saving = asyncio.Lock()
        self._is_held = False

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

    async def hold(self) -> None:
        """Save now, and write no more: the file is about to be another process's."""
        self._is_held = True
        async with self._saving:
            await asyncio.to_thread(self._file.save, self._registry.saved())

    def unhold(self) -> None:
        """Go on writing, as that other process has not come."""
        self._is_held = False
        self._changed.set()

    async def run(self) -> None:
        """Save after changes until cancelled, and once more then."""
        try:
            while True:
                await self._changed.wait()
                await asyncio.sleep(SETTLE_S)
                self._changed.clear()
                await self._save()
        finally:
            if self._changed.is_set() and not self._is_held:
                self._file.save(self._registry.saved())

    async def _save(self) -> None:
        async with self._saving:
            if not self._is_held:
                await asyncio.to_thread(self._file.save, self._registry.saved())
