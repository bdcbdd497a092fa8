import pytest

from tests.gateway.conftest import StartGateway


@pytest.mark.parametrize(
    ("path", "status", "allow"),
    [
        ("/v1/chat/completions", 405, "OPTIONS, POST"),
        ("/embeddings", 405, "OPTIONS, POST"),
        ("/v1/nodes/box/heartbeat", 405, "OPTIONS, POST"),
        ("/v1/nodes/box", 405, "DELETE, OPTIONS"),
        ("/", 404, None),
        ("/slots", 404, None),
        ("/api/pull", 404, None),
        ("/docs", 404, None),
    ],
)
async def test_every_path_says_what_it_takes_and_there_are_no_others(
    start_gateway: StartGateway, path: str, status: int, allow: str | None
) -> None:
    gateway = await start_gateway()
    reply = await gateway.get(path)
    assert (reply.status, reply.fields.get("allow")) == (status, allow)
    assert reply.error["request_id"] == reply.fields["x-request-id"]


async def test_a_path_that_an_operator_adds_says_what_it_takes(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(paths={"/v1/infill": {}})
    reply = await gateway.get("/v1/infill")
    assert (reply.status, reply.fields["allow"]) == (405, "OPTIONS, POST")
    await gateway.reload({})
    assert (await gateway.get("/v1/infill")).status == 404


@pytest.mark.parametrize("path", ["/slots", "/api/pull", "/v1/models", "/completion"])
async def test_nothing_is_relayed_that_is_no_inference_path(
    start_gateway: StartGateway, path: str
) -> None:
    gateway = await start_gateway()
    assert (await gateway.post(path, {"model": "coder"})).status in {404, 405}
