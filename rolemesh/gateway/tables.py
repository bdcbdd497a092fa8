"""The current routing table: built when first asked for after something it depends on changed."""

from collections.abc import Callable

from rolemesh.errors import UnknownAlias
from rolemesh.gateway.routing_table import RoutingTable, Target
from rolemesh.names import Alias


class RoutingTables:
    """Holds the table in force; many changes between two requests cost one build."""

    def __init__(self, build: Callable[[], RoutingTable]) -> None:
        self._build = build
        self._current: RoutingTable | None = None

    @property
    def current(self) -> RoutingTable:
        """Return the table in force."""
        if self._current is None:
            self._current = self._build()
        return self._current

    def invalidate(self) -> None:
        """Note that something the table depends on has changed."""
        self._current = None

    def target(self, alias: Alias) -> Target:
        """Return what answers an alias; raises UnknownAlias."""
        target = (self._current or self.current).targets.get(alias)
        if target is None:
            raise UnknownAlias(alias, tuple(self.current.targets))
        return target
