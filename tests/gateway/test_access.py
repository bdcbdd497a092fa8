import ipaddress

import pytest

from rolemesh.config.settings import (
    ClientKey,
    GatewayAuth,
    GatewayNetwork,
    GatewaySettings,
    Listen,
    Network,
)
from rolemesh.errors import NotAllowed, NotAuthenticated
from rolemesh.gateway.access import GatewayAccess
from rolemesh.relay.access import Field
from rolemesh.runtime.keys import digest_of

CLIENT = ClientKey(name="client", digest=digest_of("client-key"))
NODE = ClientKey(name="node", digest=digest_of("node-key"))
LAN: tuple[Network, ...] = (ipaddress.ip_network("10.0.0.0/24"),)
FAR_PAGE = {"host": "evil.example"}
SHOWS_NOTHING: Field = dict[str, str]().get


def shows(key: str) -> Field:
    return {"x-api-key": key, **FAR_PAGE}.get


def access(
    host: str = "127.0.0.1",
    *,
    auth: GatewayAuth | None = None,
    network: GatewayNetwork | None = None,
) -> GatewayAccess:
    settings = GatewaySettings(
        listen=Listen(host=(host,), port=8000),
        auth=auth or GatewayAuth(),
        network=network or GatewayNetwork(),
    )
    return GatewayAccess(settings)


@pytest.mark.parametrize(
    ("found", "refused"),
    [
        (access(), True),
        (access("::1"), True),
        (access("0.0.0.0", auth=GatewayAuth(open=True)), False),
        (access(auth=GatewayAuth(open=True)), False),
    ],
)
def test_without_keys_and_on_loopback_only_local_names_are_served(
    found: GatewayAccess, refused: bool
) -> None:
    if refused:
        with pytest.raises(NotAllowed):
            found.clients.identify("127.0.0.1", FAR_PAGE.get)
    else:
        assert found.clients.identify("127.0.0.1", FAR_PAGE.get).name == "-"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_clients_and_nodes_have_keys_of_their_own(host: str) -> None:
    found = access(host, auth=GatewayAuth(clients=(CLIENT,), nodes=(NODE,)))
    client, node = shows("client-key"), shows("node-key")
    assert found.clients.identify("10.0.0.7", client).name == "client"
    with pytest.raises(NotAuthenticated):
        found.nodes.identify("10.0.0.7", client)
    assert found.nodes.identify("10.0.0.7", node).name == "node"
    with pytest.raises(NotAuthenticated):
        found.clients.identify("10.0.0.7", node)


@pytest.mark.parametrize(
    ("network", "peer", "says"),
    [
        (GatewayNetwork(), "127.0.0.1", None),
        (GatewayNetwork(), "::1", None),
        (GatewayNetwork(), "10.0.0.7", "auth.node_api_keys"),
        (GatewayNetwork(allow_nodes=LAN), "10.0.0.7", None),
        (GatewayNetwork(allow_nodes=LAN), "10.0.1.7", "outside the networks"),
        (GatewayNetwork(allow_clients=LAN), "10.0.0.7", "auth.node_api_keys"),
    ],
)
def test_without_node_keys_nodes_come_from_here_or_from_where_they_may(
    network: GatewayNetwork, peer: str, says: str | None
) -> None:
    nodes = access("0.0.0.0", auth=GatewayAuth(open=True), network=network).nodes
    if says is None:
        assert nodes.identify(peer, SHOWS_NOTHING).name == "-"
    else:
        with pytest.raises(NotAllowed, match=says):
            nodes.identify(peer, SHOWS_NOTHING)


def test_new_settings_count_at_once() -> None:
    found = access()
    assert found.clients.identify("127.0.0.1", SHOWS_NOTHING).name == "-"
    found.replace(GatewaySettings(auth=GatewayAuth(clients=(CLIENT,))))
    with pytest.raises(NotAuthenticated):
        found.clients.identify("127.0.0.1", SHOWS_NOTHING)


def test_only_the_key_of_an_operator_is_one() -> None:
    operator = ClientKey(name="ann", digest=digest_of("admin-key"), admin=True)
    found = access("0.0.0.0", auth=GatewayAuth(clients=(CLIENT, operator), nodes=(NODE,)))
    assert found.identify_operator("10.0.0.7", shows("admin-key")).name == "ann"
    with pytest.raises(NotAllowed, match="client may not do this"):
        found.identify_operator("127.0.0.1", shows("client-key"))
    for key in ("node-key", "another"):
        with pytest.raises(NotAuthenticated):
            found.identify("127.0.0.1", "/v1/rolemesh/status", shows(key))


def test_without_keys_operators_are_on_this_machine_whoever_else_is_served() -> None:
    settings = GatewaySettings(
        listen=Listen(host=("0.0.0.0",), port=8000),
        auth=GatewayAuth(open=True),
        cors_origins=("*",),
    )
    found = GatewayAccess(settings)
    page = {"origin": "https://page.example"}.get
    assert found.clients.identify("10.0.0.7", page).name == "-"
    assert found.identify_operator("127.0.0.1", SHOWS_NOTHING).name == "-"
    for peer, field in (("10.0.0.7", SHOWS_NOTHING), ("127.0.0.1", page)):
        with pytest.raises(NotAllowed):
            found.identify_operator(peer, field)
