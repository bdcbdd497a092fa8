"""The link to one gateway."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.agent import reporter as reporter_module
from rolemesh.agent.base_url import Listening
from rolemesh.agent.reporter import LinkState, Reporter
from rolemesh.config.settings import ClientTls, GatewayLink, ServerTls
from rolemesh.config.tls import client_context, server_context
from rolemesh.names import ModelId, Role
from rolemesh.runtime.tasks import TaskScope
from rolemesh.wire import ModelReport, ModelState, NodeReport
from tests.agent.builders import node_settings
from tests.fakes.gateway import FakeGateway, fake_gateway
from tests.lab.certificates import Authority
from tests.lab.poll import eventually
from tests.lab.processes import free_port


class FakeNode:
    """What the reporter reports."""

    def __init__(self) -> None:
        self.model = ModelReport(
            model_id=ModelId("a"), roles=(Role("planner"),), state=ModelState.COLD, slots_free=4
        )
        self.boot_id = "boot-1"

    def report(self, base_url: str) -> NodeReport:
        return NodeReport(
            node_id=node_settings().node_id,
            base_url=base_url,
            boot_id=self.boot_id,
            api_key="t0ken",
            models=(self.model,),
            inventory={"gpus": []},
        )


class Link:
    """A reporter under test with the node behind it."""

    def __init__(self, url: str, *, key: str | None = None, advertise: str | None = None) -> None:
        self.node = FakeNode()
        self.changes: list[LinkState] = []
        self.reporter = Reporter(
            link=GatewayLink(url=url, api_key=key),
            gateway=UpstreamAddress.parse_url(url),
            node_id=node_settings().node_id,
            advertise_url=advertise,
            listening=Listening(hosts=("127.0.0.1",), port=8123),
            build_report=self.node.report,
            on_link_change=lambda: self.changes.append(self.reporter.state),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Link"]:
        async with TaskScope() as scope:
            _ = scope.start(self.reporter.run(), name="reporter")
            yield self

    async def becomes(self, state: LinkState) -> None:
        await eventually(lambda: self.reporter.state is state, what=f"the link is {state.value}")


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with fake_gateway(FakeGateway()) as running:
        yield running


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter_module, "FIRST_BACKOFF_S", 0.02)
    monkeypatch.setattr(reporter_module, "LONGEST_BACKOFF_S", 0.1)


async def test_a_node_registers_with_its_address_its_token_and_the_gateways_key(
    gateway: FakeGateway,
) -> None:
    async with Link(gateway.url, key="node-key").running() as link:
        await link.becomes(LinkState.REGISTERED)
    (report,) = gateway.reports
    assert report.base_url == "http://127.0.0.1:8123"
    assert (report.api_key, report.boot_id) == ("t0ken", "boot-1")
    assert gateway.keys == {"Bearer node-key"}


async def test_the_advertised_url_is_the_one_from_the_settings(gateway: FakeGateway) -> None:
    async with Link(gateway.url, advertise="http://box.lan:9").running() as link:
        await link.becomes(LinkState.REGISTERED)
    assert gateway.reports[0].base_url == "http://box.lan:9"


async def test_heartbeats_come_in_the_interval_that_the_gateway_asks_for(
    gateway: FakeGateway,
) -> None:
    gateway.interval_s = 0.1
    async with Link(gateway.url).running():
        await eventually(lambda: len(gateway.beats) >= 3, what="three beats")
    assert len(gateway.reports) == 1


async def test_a_change_of_a_models_state_is_told_soon(gateway: FakeGateway) -> None:
    gateway.interval_s = 60.0
    async with Link(gateway.url).running() as link:
        await link.becomes(LinkState.REGISTERED)
        link.node.model = replace(link.node.model, state=ModelState.READY)
        link.reporter.node_changed()
        # Long before the next heartbeat is due.
        await eventually(lambda: gateway.beats, what="an early beat")
    assert gateway.beats[0]["models"][0]["state"] == "ready"


async def test_free_slots_wait_for_the_next_heartbeat(gateway: FakeGateway) -> None:
    gateway.interval_s = 60.0
    async with Link(gateway.url).running() as link:
        await link.becomes(LinkState.REGISTERED)
        link.node.model = replace(link.node.model, slots_free=3)
        link.reporter.node_changed()
        await eventually(lambda: not link.reporter._changed.is_set(), what="it was looked at")
        link.node.model = replace(link.node.model, state=ModelState.READY)
        link.reporter.node_changed()
        await eventually(lambda: gateway.beats, what="a beat for what matters")
    assert [beat["models"][0]["state"] for beat in gateway.beats] == ["ready"]


async def test_a_gateway_that_lost_its_state_gets_a_new_registration(
    gateway: FakeGateway,
) -> None:
    gateway.interval_s = 0.1
    async with Link(gateway.url).running() as link:
        await link.becomes(LinkState.REGISTERED)
        gateway.known.clear()
        await eventually(lambda: len(gateway.reports) == 2, what="registered again")
        await eventually(lambda: gateway.beats, what="beats go on")


async def test_a_gateway_that_is_away_is_tried_until_it_is_back() -> None:
    port = free_port()
    gateway = FakeGateway()
    async with Link(f"http://127.0.0.1:{port}").running() as link:
        await eventually(lambda: "no connection" in link.reporter.problem, what="a first try")
        async with fake_gateway(gateway, port=port):
            await link.becomes(LinkState.REGISTERED)
            gateway.known.clear()
        link.node.model = replace(link.node.model, state=ModelState.READY)
        link.reporter.node_changed()
        await link.becomes(LinkState.AWAY)
        async with fake_gateway(gateway, port=port):
            await link.becomes(LinkState.REGISTERED)
    assert len(gateway.reports) == 2


async def test_a_refusal_is_said_once_with_the_gateways_words(
    gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.refusal = (403, "outside allow_nodes")
    caplog.set_level(logging.INFO)
    async with Link(gateway.url).running() as link:
        await link.becomes(LinkState.REFUSED)
        tries = len(link.changes)
        assert link.reporter.problem == "403 outside allow_nodes"
        before = gateway.refused
        await eventually(lambda: gateway.refused >= before + 3, what="it was refused again")
        assert len(link.changes) == tries
        gateway.refusal = None
        await link.becomes(LinkState.REGISTERED)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in errors] == [
        f"gateway {gateway.url} refuses this node: 403 outside allow_nodes"
    ]


async def test_a_gateway_with_an_error_of_its_own_is_away_not_refusing(
    gateway: FakeGateway,
) -> None:
    gateway.refusal = (503, "starting")
    async with Link(gateway.url).running() as link:
        await eventually(lambda: "503 starting" in link.reporter.problem, what="the 503 is seen")
        assert link.reporter.state is LinkState.AWAY


async def test_a_node_that_leaves_says_so(gateway: FakeGateway) -> None:
    link = Link(gateway.url)
    async with link.running():
        await link.becomes(LinkState.REGISTERED)
    await link.reporter.leave()
    assert gateway.removed == ["box"]


async def test_leaving_a_gateway_that_is_gone_or_was_never_reached_is_fine() -> None:
    link = Link(f"http://127.0.0.1:{free_port()}")
    await link.reporter.leave()
    async with fake_gateway(FakeGateway()) as gateway:
        link = Link(gateway.url)
        async with link.running():
            await link.becomes(LinkState.REGISTERED)
    await link.reporter.leave()


async def test_a_gateway_with_https_is_verified_and_what_is_wrong_is_said(
    authority: Authority,
) -> None:
    shown = authority.sign("gateway")
    tls = server_context(ServerTls(cert_file=shown.cert_file, key_file=shown.key_file))
    async with fake_gateway(FakeGateway(), tls=tls) as gateway:
        link = Link(gateway.url)
        address = link.reporter.gateway
        link.reporter.gateway = address.verified_by(client_context(ClientTls()))
        async with link.running():
            await link.becomes(LinkState.AWAY)
            assert "its certificate is not accepted: unable to get local" in link.reporter.problem
            own = client_context(ClientTls(ca_file=authority.ca_file))
            link.reporter.gateway = address.verified_by(own)  # as a reload does
            await link.becomes(LinkState.REGISTERED)
