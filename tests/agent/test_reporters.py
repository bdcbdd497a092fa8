"""The links to all gateways."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.agent.base_url import Listening
from rolemesh.agent.reporters import Reporters
from rolemesh.config.settings import GatewayLink
from rolemesh.runtime.tasks import TaskScope
from rolemesh.wire import NodeReport
from tests.agent.builders import node_settings
from tests.fakes.gateway import FakeGateway, fake_gateway
from tests.lab.poll import eventually
from tests.lab.processes import free_port


@pytest.fixture
async def gateways() -> AsyncIterator[tuple[FakeGateway, FakeGateway]]:
    async with fake_gateway(FakeGateway()) as first, fake_gateway(FakeGateway()) as second:
        yield first, second


@pytest.fixture
async def reporters() -> AsyncIterator[Reporters]:
    settings = node_settings()
    async with TaskScope() as scope:
        yield Reporters(
            scope=scope,
            node_id=settings.node_id,
            listening=Listening(hosts=("127.0.0.1",), port=8123),
            locate=lambda link: UpstreamAddress.parse_url(link.url),
            build_report=lambda base_url: NodeReport(
                node_id=settings.node_id, base_url=base_url, boot_id="b", inventory={}
            ),
            on_link_change=lambda: None,
        )


async def test_every_gateway_gets_every_report(
    reporters: Reporters, gateways: tuple[FakeGateway, FakeGateway]
) -> None:
    links = tuple(GatewayLink(url=gateway.url) for gateway in gateways)
    reporters.apply(replace(node_settings(), gateways=links))
    await eventually(lambda: reporters.summary() == "2/2", what="both know the node")
    await reporters.leave()
    assert [gateway.removed for gateway in gateways] == [["box"], ["box"]]
    assert reporters.summary() == "0/0"


async def test_changed_settings_end_and_begin_links_and_leave_the_others_alone(
    reporters: Reporters, gateways: tuple[FakeGateway, FakeGateway]
) -> None:
    first, second = (GatewayLink(url=gateway.url) for gateway in gateways)
    reporters.apply(replace(node_settings(), gateways=(first,)))
    await eventually(lambda: reporters.summary() == "1/1", what="the first knows the node")
    reporters.apply(replace(node_settings(), gateways=(first, second)))
    await eventually(lambda: reporters.summary() == "2/2", what="both know the node")
    reporters.apply(replace(node_settings(), gateways=(second,)))
    await eventually(lambda: gateways[0].removed == ["box"], what="the first was left")
    assert reporters.summary() == "1/1"
    assert [len(gateway.reports) for gateway in gateways] == [1, 1]


async def test_the_summary_says_what_is_wrong_with_a_gateway(reporters: Reporters) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    reporters.apply(replace(node_settings(), gateways=(GatewayLink(url=url),)))
    await eventually(lambda: "no connection" in reporters.summary(), what="it was tried")
    assert reporters.summary().startswith(f"0/1 ({url} away: ")
    await reporters.leave()


async def test_a_node_that_listens_elsewhere_says_so_at_once(
    reporters: Reporters, gateways: tuple[FakeGateway, FakeGateway]
) -> None:
    gateway = gateways[0]
    reporters.apply(replace(node_settings(), gateways=(GatewayLink(url=gateway.url),)))
    await eventually(lambda: gateway.reports, what="it knows the node")
    reporters.listens_on(Listening(hosts=("127.0.0.1",), port=8124))
    await eventually(lambda: len(gateway.reports) == 2, what="it knows the new address")
    urls = [report.base_url for report in gateway.reports]
    assert urls == ["http://127.0.0.1:8123", "http://127.0.0.1:8124"]
    await reporters.leave()


async def test_a_node_that_is_to_be_reached_elsewhere_says_so_at_once(
    reporters: Reporters, gateways: tuple[FakeGateway, FakeGateway]
) -> None:
    settings = replace(node_settings(), gateways=(GatewayLink(url=gateways[0].url),))
    reporters.apply(settings)
    await eventually(lambda: len(gateways[0].reports) == 1, what="it is known")
    reporters.apply(replace(settings, advertise_url="http://10.1.2.3:81"))
    await eventually(lambda: len(gateways[0].reports) == 2, what="it registers anew")
    assert gateways[0].reports[-1].base_url == "http://10.1.2.3:81"
    await reporters.leave()


async def test_links_that_another_process_goes_on_with_end_without_a_word(
    reporters: Reporters, gateways: tuple[FakeGateway, FakeGateway]
) -> None:
    links = tuple(GatewayLink(url=gateway.url) for gateway in gateways)
    reporters.apply(replace(node_settings(), gateways=links))
    await eventually(lambda: reporters.summary() == "2/2", what="both know the node")
    await reporters.hand_over()
    assert reporters.summary() == "0/0"
    await reporters.leave()
    assert [gateway.removed for gateway in gateways] == [[], []]
