"""What nodes, and people with curl, may tell the gateway."""

import ipaddress
from typing import Any

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.config.settings import GatewayNetwork, GatewaySettings, Network
from rolemesh.errors import BadRequest, NotAllowed
from rolemesh.gateway.access import GatewayAccess
from rolemesh.gateway.node_api import BEATS_PER_STALE, NodeApi
from rolemesh.gateway.registry import Registry
from tests.fakes.client import connected, request
from tests.fakes.upstream import answers
from tests.gateway.conftest import StartGateway, StartUpstream
from tests.gateway.harness import Running

REGISTER = "/v1/nodes/register"
BASE_URL = "http://127.0.0.1:9"
MINIMAL = {
    "node_id": "box",
    "base_url": BASE_URL,
    "models": [{"model_id": "m", "roles": ["coder"]}],
}


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> Running:
    return await start_gateway(nodes={"stale_after_s": 20})


async def test_what_the_seed_promises_for_curl_is_enough(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(answers(b"{}"))
    reply = await gateway.post(REGISTER, {**MINIMAL, "base_url": up.url, "unknown": {"x": 1}})
    assert reply.status == 200
    assert reply.json == {
        "status": "registered",
        "node_id": "box",
        "heartbeat_interval_s": 20 / BEATS_PER_STALE,
    }
    assert (await gateway.chat()).status == 200
    assert (await gateway.post("/v1/nodes/box/heartbeat", {})).json == {
        "status": "ok",
        "heartbeat_interval_s": 5.0,
    }


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"\xff", "not a JSON object"),
        (b"[" * 100_000, "not a JSON object"),
        ({}, "node_id: expected a string, found nothing"),
        ({**MINIMAL, "node_id": 1}, "node_id: expected a string"),
        ({**MINIMAL, "node_id": "a b"}, "node_id: expected"),
        ({**MINIMAL, "node_id": "a/b"}, "node_id: expected"),
        ({**MINIMAL, "node_id": "a\r\nX: b"}, "node_id: expected"),
        ({**MINIMAL, "node_id": ""}, "node_id: expected"),
        ({**MINIMAL, "api_key": "a\r\nX: b"}, "api_key: expected"),
        ({**MINIMAL, "models": None}, "models: expected"),
        ({**MINIMAL, "models": [{}]}, "model_id: expected"),
        ({**MINIMAL, "models": [{"model_id": "m"}]}, "roles: expected"),
        ({**MINIMAL, "models": [{"model_id": "m", "roles": [1]}]}, "roles: expected"),
        ({**MINIMAL, "models": [{"model_id": "m\n", "roles": []}]}, "models: expected"),
        ({**MINIMAL, "models": [{"model_id": "", "roles": []}]}, "models: expected"),
        ({**MINIMAL, "models": [{"model_id": "m", "roles": [""]}]}, "models: expected"),
        ({**MINIMAL, "base_url": "ftp://a"}, "base_url: expected http[s]://"),
        ({**MINIMAL, "base_url": "127.0.0.1:8100"}, "base_url: expected http[s]://"),
        ({**MINIMAL, "base_url": "http://127.0.0.1:99999"}, "base_url: "),
        ({**MINIMAL, "base_url": "http://user@127.0.0.1"}, "base_url: "),
        ({**MINIMAL, "base_url": "http://a\0b"}, "cannot be resolved"),
        ({**MINIMAL, "base_url": "http://no-such-host.invalid"}, "cannot be resolved"),
        ({**MINIMAL, "base_url": "http://0.0.0.0:8100"}, "no address to connect to"),
        ({**MINIMAL, "base_url": "http://[::]:8100"}, "no address to connect to"),
    ],
)
async def test_a_bad_report_is_refused_naming_the_field(
    gateway: Running, body: Any, says: str
) -> None:
    reply = await gateway.post(REGISTER, body)
    assert reply.status == 400
    assert says in reply.error["message"]
    assert gateway.registry.nodes == {}


async def test_a_report_that_is_too_large_is_refused(gateway: Running) -> None:
    reply = await gateway.post(REGISTER, {**MINIMAL, "host": "a" * (5 << 20)})
    assert (reply.status, reply.error["code"]) == (413, "body_too_large")


async def test_a_heartbeat_of_a_node_that_is_not_known_asks_it_to_register(
    gateway: Running,
) -> None:
    reply = await gateway.post("/v1/nodes/box/heartbeat", {})
    assert (reply.status, reply.error["code"]) == (404, "unknown_path")
    assert "register first" in reply.error["message"]
    await gateway.post(REGISTER, {**MINIMAL, "boot_id": "one"})
    assert (await gateway.post("/v1/nodes/box/heartbeat", {"boot_id": "one"})).status == 200
    assert (await gateway.post("/v1/nodes/box/heartbeat", {"boot_id": "two"})).status == 404
    assert (await gateway.post("/v1/nodes/box/heartbeat", b"[]")).status == 400


async def test_whoever_sets_a_node_up_sees_what_became_of_it(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        aliases={"from_roles": True},
        models={
            "planner": {"type": "proxy", "proxy_url": BASE_URL},
            "dev": {"type": "discovered", "role": "coder"},
        },
    )
    assert (await gateway.get("/v1/nodes/box")).status == 404
    model = {"model_id": "m", "roles": ["coder", "planner"], "usable": False, "reason": "no file"}
    await gateway.post(REGISTER, {**MINIMAL, "models": [model]})
    assert (await gateway.get("/v1/nodes/box")).json == {
        "node_id": "box",
        "state": "live",
        "reason": "",
        "base_url": BASE_URL,
        "models": [{"model_id": "m", "usable": False, "reason": "no file"}],
        "aliases": {"coder": ["dev", "coder"], "planner": []},
    }


async def test_a_node_that_says_good_bye_is_forgotten(gateway: Running) -> None:
    await gateway.post(REGISTER, MINIMAL)
    for status in (200, 404):
        reply = await _delete(gateway, "/v1/nodes/box")
        assert reply == status
    assert gateway.registry.nodes == {}


async def _delete(gateway: Running, path: str, *fields: str) -> int:
    async with connected(gateway.port) as client:
        await client.send(request("DELETE", path, *fields))
        return (await client.reply()).status


async def test_with_node_keys_every_word_needs_one(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        auth={"node_api_keys": ["node-key"], "client_api_keys": ["client-key"]}
    )
    key = "Authorization: Bearer node-key"
    for fields in ((), ("Authorization: Bearer client-key",)):
        assert (await gateway.post(REGISTER, MINIMAL, *fields)).status == 401
        assert (await gateway.post("/v1/nodes/box/heartbeat", {}, *fields)).status == 401
        assert await _delete(gateway, "/v1/nodes/box", *fields) == 401
    assert (await gateway.post(REGISTER, MINIMAL, key)).status == 200
    assert (await gateway.post("/v1/nodes/box/heartbeat", {}, key)).status == 200
    assert (await gateway.get("/v1/models", key)).status == 401
    assert await _delete(gateway, "/v1/nodes/box", key) == 200


# --- addresses: callers from elsewhere cannot be had on a loopback, so the rule is asked itself ---


def api(*networks: str) -> NodeApi:
    allowed: tuple[Network, ...] | None = tuple(map(ipaddress.ip_network, networks)) or None
    settings = GatewaySettings(network=GatewayNetwork(allow_nodes=allowed))
    return NodeApi(
        access=GatewayAccess(settings),
        registry=Registry(stale_after_s=30, on_change=lambda: None, on_silent=lambda _: None),
        settings=settings,
        secured=lambda address: address,
    )


@pytest.mark.parametrize(
    ("base_url", "peer", "host"),
    [
        ("http://127.0.0.1:8100", "127.0.0.1", "127.0.0.1"),
        ("http://localhost:8100", "::1", None),
        ("http://10.0.0.7:8100/prefix", "10.0.0.7", "10.0.0.7"),
        ("http://10.0.0.8:8100", "10.0.0.7", "10.0.0.8"),
    ],
)
async def test_an_address_is_resolved_once_and_keeps_its_name_for_the_host_header(
    base_url: str, peer: str, host: str | None
) -> None:
    address = UpstreamAddress.parse_url(base_url)
    checked = await api()._checked(address, peer)
    assert checked.host == (host or str(ipaddress.ip_address(checked.host)))
    assert (checked.authority, checked.prefix) == (address.authority, address.prefix)


@pytest.mark.parametrize(
    "base_url",
    ["http://127.0.0.1:8100", "http://localhost", "http://[::1]", "http://[::ffff:127.0.0.1]"],
)
async def test_a_loopback_address_from_another_machine_is_refused_naming_that(
    base_url: str,
) -> None:
    with pytest.raises(NotAllowed, match=r"came from 10\.0\.0\.7.*advertise_url"):
        await api()._checked(UpstreamAddress.parse_url(base_url), "10.0.0.7")


async def test_an_advertised_address_must_lie_in_the_allowed_networks() -> None:
    checked = api("10.0.0.0/24")._checked
    address = UpstreamAddress.parse_url("http://10.0.0.7")
    assert await checked(address, "10.0.0.7") == address
    with pytest.raises(NotAllowed, match=r"outside network\.allow_nodes"):
        await checked(UpstreamAddress.parse_url("http://10.0.1.7"), "10.0.0.7")


async def test_an_address_nobody_could_connect_to_is_refused() -> None:
    with pytest.raises(BadRequest):
        await api()._checked(UpstreamAddress.parse_url("http://0.0.0.0"), "10.0.0.7")
