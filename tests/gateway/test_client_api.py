"""What /v1/models, /health and /ready say, and that it is true."""

from typing import Any

import pytest

from rolemesh import __version__
from tests.fakes.upstream import answers
from tests.gateway.conftest import StartGateway, StartUpstream
from tests.gateway.harness import DISCOVERED, Running
from tests.lab.processes import free_port

OK = answers(b"{}")
KEYS = {"client_api_keys": ["any-key"], "clients": {"ci": {"key": "ci-key", "roles": ["critic"]}}}


async def models(gateway: Running, *fields: str) -> tuple[list[str], dict[str, str]]:
    """Return the ids of usable aliases, and the reasons of the others."""
    reply = await gateway.get("/v1/models", *fields)
    assert (reply.status, reply.json["object"]) == (200, "list")
    unavailable = reply.json["rolemesh"]["unavailable_models"]
    return (
        [each["id"] for each in reply.json["data"]],
        {each["id"]: each["reason"] for each in unavailable},
    )


def model(model_id: str, *roles: str, **fields: Any) -> dict[str, Any]:
    return {"model_id": model_id, "roles": roles, **fields}


async def test_only_aliases_that_can_answer_are_listed_and_the_others_say_why(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(OK)
    dead = f"http://127.0.0.1:{free_port()}"
    gateway = await start_gateway(
        aliases={"from_roles": True},
        models={
            "coder": DISCOVERED,
            "poet": DISCOVERED,
            "alive": {"type": "proxy", "proxy_url": up.url},
            "dead": {"type": "proxy", "proxy_url": dead},
        },
    )
    await gateway.register(
        "box",
        up,
        model("m", "coder", "critic"),
        model("big", "painter", usable=False, reason="needs 80 GiB, has 24 GiB"),
    )
    usable, unavailable = await models(gateway)
    assert usable == ["coder", "alive", "critic"]
    assert unavailable == {
        "poet": "no node announces the role poet",
        "dead": f"no connection to {dead}: Connection refused",
        "painter": "box: needs 80 GiB, has 24 GiB",
    }
    for alias in (*usable, *unavailable):
        assert (await gateway.chat(alias)).status == (200 if alias in usable else 503)


async def test_the_path_without_a_version_answers_too(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    assert (await gateway.get("/models")).json == (await gateway.get("/v1/models")).json


async def test_one_model_can_be_asked_for(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(OK)
    gateway = await start_gateway(models={"org/coder": DISCOVERED, "poet": DISCOVERED})
    await gateway.register("box", up, model("m", "org/coder"))
    for path in ("/v1/models/org/coder", "/v1/models/org%2Fcoder"):
        reply = await gateway.get(path)
        assert reply.status == 200
        assert isinstance(reply.json.pop("created"), int)
        assert {**reply.json, "created": 0} == {
            "id": "org/coder",
            "object": "model",
            "created": 0,
            "owned_by": "rolemesh",
        }
    reply = await gateway.get("/v1/models/poet")
    assert (reply.status, reply.error["reason"]) == (503, "no node announces the role poet")
    reply = await gateway.get("/v1/models/nobody")
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")


async def test_a_key_sees_only_the_aliases_it_may_use(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    proxy = {"type": "proxy", "proxy_url": (await start_upstream(OK)).url}
    gateway = await start_gateway(auth=KEYS, models={"coder": proxy, "critic": proxy})
    assert (await gateway.get("/v1/models")).status == 401
    assert (await gateway.get("/v1/models", "Authorization: Bearer \xff")).status == 401
    assert (await models(gateway, "X-Api-Key: any-key"))[0] == ["coder", "critic"]
    assert (await models(gateway, "X-Api-Key: ci-key"))[0] == ["critic"]
    assert (await gateway.get("/v1/models/critic", "X-Api-Key: ci-key")).status == 200
    assert (await gateway.get("/v1/models/coder", "X-Api-Key: ci-key")).status == 403


async def test_health_tells_of_the_process_alone_and_needs_no_key(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(auth=KEYS)
    reply = await gateway.get("/health")
    assert (reply.status, reply.json) == (200, {"status": "ok", "version": __version__})


@pytest.mark.parametrize(
    ("configuration", "reason"),
    [
        ({}, "default_model is not set"),
        ({"default_model": "coder"}, "no node announces the role coder"),
        (
            {"default_model": "later", "aliases": {"from_roles": True}},
            "default_model later is not announced by any node",
        ),
    ],
)
async def test_a_gateway_is_not_ready_without_its_default_model_and_says_why(
    start_gateway: StartGateway, configuration: dict[str, Any], reason: str
) -> None:
    gateway = await start_gateway(auth=KEYS, **configuration)
    reply = await gateway.get("/ready")
    assert (reply.status, reply.json) == (503, {"status": "unavailable", "reason": reason})


async def test_a_gateway_is_ready_when_its_default_model_is_usable(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway(default_model="coder")
    await gateway.register("box", await start_upstream(OK))
    reply = await gateway.get("/ready")
    assert (reply.status, reply.json) == (200, {"status": "ready", "model": "coder"})
