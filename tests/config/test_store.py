from pathlib import Path

import pytest

from rolemesh.config.dropins import ConfigSource
from rolemesh.config.settings import GatewaySettings
from rolemesh.config.store import ConfigStore, gateway_store, node_store
from rolemesh.errors import ConfigError
from tests.config.conftest import Write


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "d").mkdir()
    return tmp_path / "d"


@pytest.fixture
def store(directory: Path) -> ConfigStore[GatewaySettings]:
    return gateway_store(ConfigSource(program="gateway", config_dir=directory))


def test_a_store_is_loaded_when_it_is_made(store: ConfigStore[GatewaySettings]) -> None:
    assert store.settings == GatewaySettings()
    assert store.generation == 1


def test_what_cannot_be_loaded_makes_no_store(directory: Path, write: Write) -> None:
    write("d/a.yaml", "modles: {}")
    with pytest.raises(ConfigError):
        gateway_store(ConfigSource(program="gateway", config_dir=directory))
    with pytest.raises(ConfigError):
        node_store(ConfigSource(program="node", config_dir=directory))


def test_a_node_has_a_store_too(directory: Path, write: Write) -> None:
    write("d/a.yaml", "node_id: box")
    assert node_store(ConfigSource(program="node", config_dir=directory)).settings.node_id == "box"


def test_subscribers_are_told_what_was_and_what_is_in_the_order_they_came(
    store: ConfigStore[GatewaySettings], write: Write
) -> None:
    told: list[tuple[str, float, float]] = []
    store.subscribe(lambda old, new: told.append(("a", old.stale_after_s, new.stale_after_s)))
    store.subscribe(lambda old, new: told.append(("b", old.stale_after_s, new.stale_after_s)))
    write("d/a.yaml", "nodes: {stale_after_s: 5}")
    assert store.reload().settings.stale_after_s == 5
    assert told == [("a", 30, 5), ("b", 30, 5)]
    assert store.settings.stale_after_s == 5
    assert store.generation == 2


def test_a_reload_that_changes_nothing_is_accepted_and_tells_nobody(
    store: ConfigStore[GatewaySettings], write: Write
) -> None:
    store.subscribe(lambda _old, _new: pytest.fail("nothing changed"))
    write("d/a.yaml", "# only a comment\nnodes: {stale_after_s: 30}")
    store.reload()
    assert store.generation == 2
    assert [path.name for path in store.loaded.files] == ["a.yaml"]


def test_a_refused_reload_leaves_everything_as_it_was(
    store: ConfigStore[GatewaySettings], write: Write
) -> None:
    store.subscribe(lambda _old, _new: pytest.fail("nothing was accepted"))
    before = store.loaded
    path = write("d/a.yaml", "nodes: {stale_after_s: 5}\nmodles: {}\nlisten: 5")
    with pytest.raises(ConfigError) as refused:
        store.reload()
    assert str(refused.value) == (
        f'{path}:2: modles: unknown key; did you mean "models"?\n'
        f"{path}:3: listen: expected a mapping with host, port and tls, found 5"
    )
    assert store.loaded is before
    assert store.generation == 1


def test_a_store_that_was_not_loaded_has_no_settings() -> None:
    store: ConfigStore[GatewaySettings] = ConfigStore(lambda: pytest.fail("not called"))
    with pytest.raises(RuntimeError, match="not loaded yet"):
        _ = store.settings
