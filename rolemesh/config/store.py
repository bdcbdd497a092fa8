"""The settings of a running program, and the transaction that replaces them."""

from collections.abc import Callable
from typing import Generic

from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import Loaded, SettingsT, load_gateway, load_node
from rolemesh.config.settings import GatewaySettings, NodeSettings


class ConfigStore(Generic[SettingsT]):
    """Holder of the current settings; one per program, made by `gateway_store` or `node_store`.

    `generation` counts accepted configurations, from 1.
    """

    def __init__(self, load: Callable[[], Loaded[SettingsT]]) -> None:
        self._load = load
        self._current: Loaded[SettingsT] | None = None
        self._subscribers: list[Callable[[SettingsT, SettingsT], None]] = []
        self.generation = 0

    @property
    def loaded(self) -> Loaded[SettingsT]:
        """The configuration accepted last, with its warnings; `load` must have succeeded."""
        if self._current is None:
            msg = "the configuration was not loaded yet"
            raise RuntimeError(msg)
        return self._current

    @property
    def settings(self) -> SettingsT:
        """The current settings."""
        return self.loaded.settings

    def subscribe(self, on_change: Callable[[SettingsT, SettingsT], None]) -> None:
        """Call `on_change(old, new)` after each accepted reload that changed anything.

        Subscribers are called in the order they came. They apply what differs; they may not
        refuse it, block or fail.
        """
        self._subscribers.append(on_change)

    def load(self, *, prepare: Callable[[SettingsT], None] | None = None) -> Loaded[SettingsT]:
        """Read and accept the configuration; raises ConfigError and changes nothing.

        `prepare` does what may still fail with these settings; what it raises refuses them. At
        the first call nobody is told: there is no old configuration.
        """
        new = self._load()
        if prepare is not None:
            prepare(new.settings)
        old, self._current = self._current, new
        self.generation += 1
        if old is not None and old.settings != new.settings:
            for on_change in self._subscribers:
                on_change(old.settings, new.settings)
        return new

    reload = load


def gateway_store(source: ConfigSource) -> ConfigStore[GatewaySettings]:
    """Return the gateway's store, loaded; raises ConfigError."""
    store = ConfigStore(lambda: load_gateway(source))
    store.load()
    return store


def node_store(source: ConfigSource) -> ConfigStore[NodeSettings]:
    """Return the node agent's store, loaded; raises ConfigError."""
    store = ConfigStore(lambda: load_node(source))
    store.load()
    return store
