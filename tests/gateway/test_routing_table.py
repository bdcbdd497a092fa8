from typing import Any

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.config.settings import DiscoveredAlias, GatewaySettings, ProxyAlias, Timeouts
from rolemesh.gateway.routing_table import (
    NodeView,
    RoutingTable,
    Warmth,
    build_routing_table,
)
from rolemesh.gateway.upstream_kinds import Health
from rolemesh.names import Alias, Role
from rolemesh.wire import ModelState
from tests.gateway.builders import model, node_view

ALIAS = Alias("planner")
URL = "http://127.0.0.1:8011/prefix"
PLANNER = ProxyAlias(
    alias=Alias("planner"),
    proxy_url=URL,
    model="up-planner",
    defaults={"temperature": 0},
    max_in_flight=4,
    timeouts=Timeouts(total_s=7),
)
CODER = DiscoveredAlias(alias=Alias("coder"), role=Role("coder"), defaults={"n": 1})


def table(
    *aliases: ProxyAlias | DiscoveredAlias,
    nodes: tuple[NodeView, ...] = (),
    health: dict[Alias, Health] | None = None,
    **settings: Any,
) -> RoutingTable:
    models = {entry.alias: entry for entry in aliases}
    return build_routing_table(
        GatewaySettings(models=models, **settings),
        nodes,
        health or {},
        lambda alias: UpstreamAddress.parse_url(alias.proxy_url),
    )


def test_a_proxy_alias_has_its_one_upstream() -> None:
    planner = table(PLANNER, health={ALIAS: Health()}).targets[Alias("planner")]
    assert planner.usable
    assert planner.reason == ""
    assert (planner.defaults, planner.timeouts.total_s) == ({"temperature": 0}, 7)
    (only,) = planner.candidates
    assert (only.upstream.name, only.upstream.address.prefix) == (URL, "/prefix")
    assert (only.model, only.slots, only.warmth) == ("up-planner", 4, Warmth.READY)
    assert only.upstream.node_id is None


@pytest.mark.parametrize(
    ("health", "usable", "reason", "warmth"),
    [
        ({}, False, "its upstream was not looked at yet", Warmth.READY),
        ({ALIAS: Health(down="refused")}, False, "refused", Warmth.READY),
        ({ALIAS: Health(state=ModelState.LOADING)}, True, "", Warmth.LOADING),
    ],
)
def test_a_proxy_alias_is_as_usable_as_its_upstream(
    health: dict[Alias, Health], usable: bool, reason: str, warmth: Warmth
) -> None:
    planner = table(PLANNER, health=health).targets[Alias("planner")]
    assert (planner.usable, planner.reason) == (usable, reason)
    assert planner.candidates[0].warmth is warmth


def test_a_discovered_alias_has_every_model_with_its_role() -> None:
    nodes = (
        node_view("a", model("m1", "coder", "critic"), model("m2", "planner"), model("m3")),
        node_view("b", model("m1")),
    )
    coder = table(CODER, nodes=nodes).targets[Alias("coder")]
    found = [(each.upstream.name, each.model, each.preference) for each in coder.candidates]
    assert found == [("a", "m1", 0), ("a", "m3", 2), ("b", "m1", 0)]
    assert coder.defaults == {"n": 1}


@pytest.mark.parametrize(
    ("state", "warmth"),
    [
        (ModelState.READY, Warmth.READY),
        (ModelState.UNKNOWN, Warmth.READY),
        (ModelState.LOADING, Warmth.LOADING),
        (ModelState.COLD, Warmth.COLD),
        (ModelState.FAILED, Warmth.COLD),
    ],
)
def test_a_candidate_is_as_warm_as_its_model(state: ModelState, warmth: Warmth) -> None:
    nodes = (node_view("a", model("m", state=state, slots=3)),)
    (only,) = table(CODER, nodes=nodes).targets[Alias("coder")].candidates
    assert (only.warmth, only.slots) == (warmth, 3)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ((), "no node announces the role coder"),
        ((node_view("a", model("m", "critic")),), "no node announces the role coder"),
        ((node_view("a", unusable="stale"),), "a: stale"),
        ((node_view("a", model("m", usable=False, reason="too big")),), "a: too big"),
        ((node_view("a", model("m", usable=False, state=ModelState.FAILED)),), "a: failed"),
        (
            (
                node_view("a", model("m", usable=False, reason="too big"), unusable="stale"),
                node_view("b", model("m", usable=False, reason="too big")),
            ),
            "a: stale; b: too big",
        ),
    ],
)
def test_an_alias_that_cannot_answer_says_why_for_each_candidate(
    nodes: tuple[NodeView, ...], reason: str
) -> None:
    coder = table(CODER, nodes=nodes).targets[Alias("coder")]
    assert not coder.usable
    assert coder.reason == reason


def test_one_usable_candidate_is_enough() -> None:
    nodes = (node_view("a", unusable="stale"), node_view("b"))
    coder = table(CODER, nodes=nodes).targets[Alias("coder")]
    assert (coder.usable, coder.reason) == (True, "")


def test_announced_roles_are_aliases_only_where_that_is_wanted() -> None:
    nodes = (node_view("a", model("m", "critic", "planner")),)
    assert set(table(PLANNER, nodes=nodes).targets) == {"planner"}
    both = table(PLANNER, nodes=nodes, aliases_from_roles=True, health={ALIAS: Health()})
    assert set(both.targets) == {"planner", "critic"}
    assert both.targets[Alias("planner")].role is None  # what models says goes first
    assert both.targets[Alias("critic")].usable


def test_a_role_stays_an_alias_while_its_only_node_is_out_of_routing() -> None:
    found = table(nodes=(node_view("a", unusable="stale"),), aliases_from_roles=True)
    assert found.targets[Alias("coder")].reason == "a: stale"


def test_the_default_model_is_passed_on() -> None:
    assert table(default_model=Alias("coder")).default_model == "coder"
