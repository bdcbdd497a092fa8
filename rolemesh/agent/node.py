"""The node as a whole: the settings in force, the fleet, the last look at the machine.

Changes of any of them meet here: the fleet follows settings and inventory, and those who tell
others (STATUS, reports) hear of every change, bundled.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from rolemesh.agent.desired import desired_instances
from rolemesh.agent.fleet import Fleet
from rolemesh.agent.observation import HostObservation
from rolemesh.agent.report import NodeView
from rolemesh.config.settings import NodeSettings

logger = logging.getLogger(__name__)

BUNDLE_S: Final = 0.05
"""How long a change waits for others before it is told."""


class Node:
    """Owner of the settings in force and of the last observation."""

    def __init__(
        self, *, settings: NodeSettings, fleet: Fleet, observation: HostObservation
    ) -> None:
        self.settings = settings
        self._loop = asyncio.get_running_loop()
        self._fleet = fleet
        self._observation = observation
        self._desired = desired_instances(settings, observation.inventory)
        self._listeners: list[Callable[[], None]] = []
        self._bundle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Adopt and start instances."""
        self._fleet.start(self._desired, self._observation)
        self._fleet.subscribe(self.changed)

    def view(self) -> NodeView:
        """Return the node as it is now."""
        return NodeView(
            settings=self.settings,
            fleet=self._fleet.snapshot(),
            host=self._observation,
            now=self._loop.time(),
        )

    def subscribe(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` soon after changes of what `view` returns."""
        self._listeners.append(on_change)

    def observed(self, observation: HostObservation) -> None:
        """Follow what was seen of the machine."""
        self._observation = observation
        if not self._follow(self.settings):
            self._fleet.observe(observation)
        self.changed()

    def settings_changed(self, settings: NodeSettings) -> None:
        """Follow new settings; what did not change goes on untouched."""
        node_id = self.settings.node_id
        if settings.node_id != node_id:
            logger.warning("node_id changed: that takes effect at the next start")
        self._follow(replace(settings, node_id=node_id))
        self.changed()

    def changed(self) -> None:
        """Tell the listeners soon."""
        if self._bundle is None:
            self._bundle = self._loop.call_later(BUNDLE_S, self._tell)

    def _follow(self, settings: NodeSettings) -> bool:
        desired = desired_instances(settings, self._observation.inventory)
        if (settings, desired) == (self.settings, self._desired):
            return False
        self.settings, self._desired = settings, desired
        self._fleet.apply(settings, desired, self._observation)
        return True

    def _tell(self) -> None:
        self._bundle = None
        for on_change in self._listeners:
            on_change()
