import pytest

from rolemesh.errors import UnknownAlias
from rolemesh.gateway.routing_table import RoutingTable
from rolemesh.gateway.tables import RoutingTables
from rolemesh.names import Alias
from tests.gateway.builders import target

BUILT = RoutingTable(targets={Alias("coder"): target()}, default_model=None)


def test_a_table_is_built_when_asked_for_and_once_for_many_changes() -> None:
    builds: list[int] = []

    def build() -> RoutingTable:
        builds.append(1)
        return BUILT

    tables = RoutingTables(build)
    tables.invalidate()
    assert builds == []
    assert tables.current is tables.current is BUILT
    tables.invalidate()
    tables.invalidate()
    assert tables.target(Alias("coder")).alias == "coder"
    assert len(builds) == 2


def test_an_alias_that_is_not_there_is_an_error_that_knows_the_others() -> None:
    with pytest.raises(UnknownAlias) as unknown:
        RoutingTables(lambda: BUILT).target(Alias("poet"))
    assert (unknown.value.alias, unknown.value.known) == ("poet", ("coder",))
