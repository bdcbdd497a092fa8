from pathlib import Path

import pytest

from tests.fakes.unix_http import ask_at
from tests.gateway.conftest import StartGateway
from tests.gateway.harness import DISCOVERED, running_gateway


@pytest.mark.parametrize(
    ("path", "status", "allow"),
    [
        ("/v1/chat/completions", 405, "OPTIONS, POST"),
        ("/embeddings", 405, "OPTIONS, POST"),
        ("/v1/nodes/box/heartbeat", 405, "OPTIONS, POST"),
        ("/v1/nodes/box", 404, None),
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


async def test_whoever_can_open_the_control_socket_needs_no_key_and_may_everything(
    tmp_path: Path, short_path: Path
) -> None:
    configuration = {
        "models": {"coder": DISCOVERED},
        "auth": {"clients": {"ci": {"key": "ci-key"}}},
    }
    control = short_path / "new" / "folder" / "control.sock"
    async with running_gateway(tmp_path, configuration, control=control):
        status, tree = await ask_at(control, "GET", "/v1/rolemesh/status")
        assert (status, tree["aliases"]) == (200, {"total": 1, "usable": 0})
        status, tree = await ask_at(control, "GET", "/v1/models")
        assert [each["id"] for each in tree["rolemesh"]["unavailable_models"]] == ["coder"]
        status, text = await ask_at(control, "GET", "/metrics")
        assert (status, "rolemesh_requests_in_progress 0" in text) == (200, True)
        assert (await ask_at(control, "GET", "/v1/chat/completions"))[
            0
        ] == 404  # nor is this a way to ask
    assert not control.exists()
