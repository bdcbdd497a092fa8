"""What monitoring is told."""

import re

from tests.fakes.client import connected
from tests.fakes.upstream import answers, sends_and_hangs
from tests.gateway.conftest import StartGateway, StartUpstream
from tests.gateway.harness import DISCOVERED, Running, asking
from tests.lab.poll import eventually
from tests.lab.processes import free_port

OK = answers(b"{}")
LINE = re.compile(
    r'(?P<name>[a-z_]+)(?:\{(?P<labels>(?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (?P<value>\S+)'
)


async def metrics(gateway: Running) -> dict[str, float]:
    reply = await gateway.get("/metrics")
    assert reply.status == 200
    assert reply.fields["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, float] = {}
    for line in reply.body.decode().splitlines():
        if not line.startswith("#"):
            assert LINE.fullmatch(line), line
            name, _, value = line.rpartition(" ")
            assert name not in found
            found[name] = float(value)
    return found


async def test_a_key_is_needed(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(auth={"client_api_keys": ["key"]})
    assert (await gateway.get("/metrics")).status == 401
    assert (await gateway.get("/metrics", "X-Api-Key: key")).status == 200


async def test_requests_are_counted_with_their_times(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway()
    await gateway.register("box", await start_upstream(OK, answers(b"{}", 400)))
    for _ in range(2):
        await gateway.chat()
    for stranger in ("nobody", "no-one", 'x"}\n1'):
        await gateway.chat(stranger)
    for _ in range(2):  # what was counted once is not counted again
        found = await metrics(gateway)
        total = "rolemesh_requests_total"
        assert found[f'{total}{{alias="coder",node="box",status="2xx"}}'] == 1
        assert found[f'{total}{{alias="coder",node="box",status="4xx"}}'] == 1
        assert found[f'{total}{{alias="-",node="-",status="4xx"}}'] == 3
        assert found['rolemesh_requests_refused_total{status="404"}'] == 3
        assert found['rolemesh_attempts_total{alias="coder"}'] == 2
        assert found['rolemesh_retries_total{alias="coder"}'] == 0
        for name in ("queue", "first_byte", "total"):
            histogram = f"rolemesh_request_{name}_seconds"
            assert found[f'{histogram}_bucket{{alias="coder",le="+Inf"}}'] >= 1
            assert found[f'{histogram}_count{{alias="coder"}}'] >= 1
            assert 0 <= found[f'{histogram}_sum{{alias="coder"}}'] < 60


async def test_a_request_that_goes_on_to_a_fallback_is_counted_for_its_own_alias(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway(
        models={"coder": {**DISCOVERED, "fallback": ["spare"]}, "spare": DISCOVERED}
    )
    await gateway.register("box", await start_upstream(OK), {"model_id": "m", "roles": ["spare"]})
    assert (await gateway.chat("coder", "X-Request-Id: trace-me")).status == 200
    found = await metrics(gateway)
    assert found['rolemesh_requests_total{alias="coder",node="box",status="2xx"}'] == 1
    assert found['rolemesh_fallbacks_total{alias="coder"}'] == 1
    (record,) = gateway.gateway._inference.log.history.find("trace-me")
    assert (record["alias"], record["fallback"]) == ("coder", "spare")


async def test_what_there_is_now(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(sends_and_hangs())
    dead = f"http://127.0.0.1:{free_port()}"
    gateway = await start_gateway(
        models={
            "coder": DISCOVERED,
            "dead": {"type": "proxy", "proxy_url": dead},
        }
    )
    model = {"model_id": "m", "roles": ["coder"], "slots": 1, "slots_free": 1}
    await gateway.register("box", up, model)
    async with asking(gateway), asking(gateway):
        await eventually(lambda: gateway.queued("coder") == 1, what="one runs, one waits")
        found = await metrics(gateway)
        assert found["rolemesh_requests_in_progress"] == 2
        assert found['rolemesh_requests_queued{alias="coder"}'] == 1
        assert found['rolemesh_slots_in_use{node="box",model="m",instance=""}'] == 1
        assert found['rolemesh_node_slots{node="box",model="m"}'] == 1
        assert found['rolemesh_nodes{state="live"}'] == 1
        assert found['rolemesh_nodes{state="lost"}'] == 0
        assert found["rolemesh_nodes_drained"] == 0
        assert found['rolemesh_alias_usable{alias="coder"}'] == 1
        assert found['rolemesh_alias_usable{alias="dead"}'] == 0
        assert found["rolemesh_log_records_lost_total"] == 0
        assert found["process_resident_memory_bytes"] > 0


async def test_asking_probes_nobody(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(OK)
    gateway = await start_gateway()
    await gateway.register("box", up)
    async with connected(gateway.port):
        for _ in range(3):
            await metrics(gateway)
    assert (up.probes, up.conversations) == (0, [])
