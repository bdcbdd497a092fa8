"""What operators are told, and what they can do; asked of a whole gateway."""

import asyncio
import json
from typing import Any

import pytest

from rolemesh import __version__
from tests.fakes.client import Received, connected, request
from tests.fakes.upstream import (
    CHUNKED_STREAM,
    Conversation,
    Script,
    answers,
    chunk,
    sends_and_hangs,
)
from tests.gateway.conftest import StartGateway, StartUpstream
from tests.gateway.harness import DISCOVERED, Running, asking
from tests.lab.poll import eventually

OK = answers(b"{}")
EVENT = chunk(b"data: {}\n\n")
API = "/v1/rolemesh/"
ADMIN = "X-Api-Key: admin-key"
AUTH: dict[str, Any] = {
    "client_api_keys": ["any-key"],
    "clients": {
        "ann": {"key": "admin-key", "admin": True, "roles": ["critic"]},
        "ci": {"key": "ci-key", "roles": ["coder"], "priority": "batch", "max_concurrent": 2},
    },
}
PATHS = (
    ("GET", "status"),
    ("GET", "aliases"),
    ("GET", "explain/coder"),
    ("GET", "requests"),
    ("DELETE", "requests/none"),
    ("GET", "trace/none"),
    ("POST", "nodes/box/drain"),
    ("POST", "nodes/box/undrain"),
    ("POST", "reload"),
    ("GET", "keys"),
)


async def call(gateway: Running, method: str, path: str, *fields: str) -> Received:
    async with connected(gateway.port) as client:
        await client.send(request(method, API + path, *fields))
        return await client.reply()


async def get(gateway: Running, path: str, *fields: str) -> Any:
    reply = await call(gateway, "GET", path, *fields)
    assert reply.status == 200, reply.body
    return reply.json


def held(release: asyncio.Event) -> Script:
    async def script(conversation: Conversation) -> None:
        await release.wait()
        await OK(conversation)

    return script


# --- who may ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_only_operators_may_ask(start_gateway: StartGateway, method: str, path: str) -> None:
    gateway = await start_gateway(auth=AUTH)
    assert (await call(gateway, method, path)).status == 401
    for key in ("any-key", "ci-key"):
        reply = await call(gateway, method, path, f"X-Api-Key: {key}")
        assert (reply.status, reply.error["code"]) == (403, "not_allowed")
    reply = await call(gateway, method, path, ADMIN)
    assert reply.status == 200 or "none" in path or "box" in path
    assert reply.status not in (401, 403)


async def test_without_keys_callers_on_this_machine_are_operators(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    assert (await call(gateway, "GET", "status")).status == 200
    assert (await call(gateway, "GET", "status", "Origin: https://evil.example")).status == 403


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "explain/nobody", 404, "model_not_found"),
        ("GET", "explain/coder?key=nobody", 400, "bad_request"),
        ("GET", "requests?by=moon", 400, "bad_request"),
        ("DELETE", "requests/none", 404, "unknown_path"),
        ("POST", "nodes/nobody/drain", 404, "unknown_path"),
        ("POST", "nodes/nobody/undrain", 404, "unknown_path"),
        ("GET", "nonsense", 404, "unknown_path"),
        ("PUT", "status", 405, "method_not_allowed"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    start_gateway: StartGateway, method: str, path: str, status: int, code: str
) -> None:
    reply = await call(await start_gateway(), method, path)
    assert (reply.status, reply.error["code"]) == (status, code)


# --- what there is ----------------------------------------------------------------------------


async def test_the_status_has_the_gateway_its_nodes_and_what_is_wrong(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway(default_model="coder")
    status = await get(gateway, "status")
    assert (status["ready"], status["reason"]) == (False, "no node announces the role coder")
    model = {"model_id": "m", "roles": ["coder"], "slots": 2, "slots_free": 2}
    await gateway.register(
        "box", await start_upstream(OK), model, version="1.2", gpus=[{"uuid": "GPU-0"}]
    )
    status = await get(gateway, "status")
    assert status["version"] == __version__
    assert status["listening"] == [f"127.0.0.1:{gateway.port}"]
    assert (status["config_generation"], status["default_model"]) == (1, "coder")
    assert (status["ready"], status["reason"]) == (True, "")
    assert status["aliases"] == {"total": 1, "usable": 1}
    assert status["requests"] == {"running": 0, "queued": 0}
    assert status["problems"] == []
    (box,) = status["nodes"]
    assert (box["node_id"], box["state"], box["version"]) == ("box", "live", "1.2")
    assert box["gpus"] == [{"uuid": "GPU-0"}]
    assert 0 <= box["heard_s_ago"] < 60
    (told,) = box["models"]
    assert {**told, **model, "in_flight": 0, "usable": True, "reason": ""} == told


async def test_what_is_doubtful_stands_in_the_status(
    start_gateway: StartGateway, start_upstream: StartUpstream, tmp_path: Any
) -> None:
    gateway = await start_gateway()
    (tmp_path / "registry.json").mkdir()
    await gateway.register("box", await start_upstream(OK))

    async def is_told() -> bool:
        return "registry.json not saved" in str((await get(gateway, "status"))["problems"])

    await eventually(is_told, what="the problem is told")


async def test_aliases_have_their_candidates_and_what_runs(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    release = asyncio.Event()
    up = await start_upstream(held(release))
    planner = {"type": "proxy", "proxy_url": up.url, "max_in_flight": 1, "priority": "interactive"}
    gateway = await start_gateway(models={"coder": DISCOVERED, "planner": planner})
    async with asking(gateway, "planner"), asking(gateway, "planner"):
        await eventually(lambda: gateway.queued("planner") == 1, what="one runs and one waits")
        coder, planner = (await get(gateway, "aliases"))["aliases"]
        assert (coder["alias"], coder["type"], coder["role"]) == ("coder", "discovered", "coder")
        assert (coder["usable"], coder["reason"]) == (False, "no node announces the role coder")
        assert coder["candidates"] == []
        assert (planner["type"], planner["priority"]) == ("proxy", "interactive")
        assert (planner["running"], planner["queued"]) == (1, 1)
        (candidate,) = planner["candidates"]
        assert (candidate["upstream"], candidate["usable"]) == (up.url, True)
        release.set()


async def test_keys_are_listed_with_their_bounds_and_without_their_digests(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    release = asyncio.Event()
    up = await start_upstream(held(release))
    gateway = await start_gateway(
        auth=AUTH, models={"coder": {"type": "proxy", "proxy_url": up.url}}
    )
    assert (await gateway.chat("coder", "X-Api-Key: wrong")).status == 401
    assert (await gateway.chat("nobody", "X-Api-Key: ci-key")).status == 403
    async with connected(gateway.port) as client:
        body = json.dumps({"model": "coder"}).encode()
        fields = ("X-Api-Key: ci-key", f"Content-Length: {len(body)}")
        await client.send(request("POST", "/v1/chat/completions", *fields) + body)
        await eventually(lambda: up.conversations, what="it runs")
        keys = {each["name"]: each for each in (await get(gateway, "keys", ADMIN))["keys"]}
        assert keys["ci"] == {
            "name": "ci",
            "roles": ["coder"],
            "priority": "batch",
            "max_concurrent": 2,
            "requests_per_minute": None,
            "admin": False,
            "running": 1,
            "requests": 1,
        }
        assert keys["ann"]["admin"] is True
        release.set()
        await client.reply()


async def test_an_explanation_says_who_would_answer_and_why_nobody_else_would(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    release = asyncio.Event()
    up = await start_upstream(held(release))
    bound = {**AUTH["clients"], "ci": {**AUTH["clients"]["ci"], "max_concurrent": 1}}
    gateway = await start_gateway(
        auth={**AUTH, "clients": bound},
        models={"coder": {**DISCOVERED, "fallback": ["spare"]}, "spare": DISCOVERED},
    )
    await gateway.register("box", up, {"model_id": "m", "roles": ["coder"], "slots": 2})
    tree = await get(gateway, "explain/coder", ADMIN)
    assert (tree["usable"], tree["queued"], tree["fallback"]) == (True, 0, ["spare"])
    assert tree["chosen"] == {"upstream": "box", "model": "m", "instance": None}
    (candidate,) = tree["candidates"]
    assert (candidate["chosen"], candidate["breaker"]) == (True, "closed")
    tree = await get(gateway, "explain/coder?key=ann", ADMIN)
    assert (tree["usable"], tree["reason"]) == (False, "the key may not use coder")
    body = json.dumps({"model": "coder"}).encode()
    fields = ("X-Api-Key: ci-key", f"Content-Length: {len(body)}")
    async with connected(gateway.port) as client:
        await client.send(request("POST", "/v1/chat/completions", *fields) + body)
        await eventually(lambda: up.conversations, what="it runs")
        tree = await get(gateway, "explain/coder?key=ci", ADMIN)
        assert (tree["usable"], tree["chosen"]) == (True, None)
        (candidate,) = tree["candidates"]
        assert candidate["why"] == "the key ci has as many requests running as it may"
        assert candidate["in_flight"] == 1
        tree = await get(gateway, "explain/coder", ADMIN)
        assert tree["candidates"][0]["why"] == "ready, 1 of 2 slots in use"
        release.set()
        await client.reply()


async def test_an_explanation_is_that_of_a_request_behind_those_who_wait(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(sends_and_hangs())
    gateway = await start_gateway()
    await gateway.register("box", up, {"model_id": "m", "roles": ["coder"], "slots": 2})
    # The second needs more than is free, and keeps the free slot from those behind it.
    async with asking(gateway), asking(gateway, n=2):
        await eventually(lambda: gateway.queued("coder") == 1, what="one runs and one waits")
        tree = await get(gateway, "explain/coder")
        assert (tree["queued"], tree["chosen"]) == (1, None)
        assert tree["candidates"][0]["why"] == "1 wait for it"


# --- requests ---------------------------------------------------------------------------------


async def test_requests_are_listed_in_each_phase(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(sends_and_hangs(CHUNKED_STREAM, EVENT), sends_and_hangs())
    planner = {"type": "proxy", "proxy_url": up.url, "max_in_flight": 2}
    gateway = await start_gateway(models={"planner": planner})
    async with (
        asking(gateway, "planner", stream=True),
        asking(gateway, "planner"),
        asking(gateway, "planner"),
        asking(gateway, "planner"),
    ):

        async def found() -> list[Any]:
            tree: list[Any] = (await get(gateway, "requests"))["requests"]
            return tree

        async def settled() -> bool:
            return sorted(each["phase"] for each in await found()) == [
                "queue",
                "queue",
                "stream",
                "upstream",
            ]

        await eventually(settled, what="one streams, one is sent, two wait")
        by_phase: dict[str, list[Any]] = {}
        for each in await found():
            by_phase.setdefault(each["phase"], []).append(each)
        (stream,), (sent,) = by_phase["stream"], by_phase["upstream"]
        assert (stream["streaming"], stream["bytes_out"]) == (True, len(EVENT))
        assert (sent["streaming"], sent["bytes_out"], sent["attempts"]) == (False, 0, 1)
        assert stream["node"] == sent["node"] == up.url
        assert [each["queue_position"] for each in by_phase["queue"]] == [1, 2]
        first, second = by_phase["queue"]
        assert first["age_s"] >= second["age_s"] >= 0
        assert first["queued_s"] == first["age_s"]
        assert (first["alias"], first["client"], first["node"]) == ("planner", "-", None)
        assert (first["priority"], first["path"]) == ("default", "/v1/chat/completions")
        together = (await get(gateway, "requests?by=key"))["requests"]
        assert len(together) == 4


@pytest.mark.parametrize("phase", ["queue", "upstream", "stream"])
async def test_a_request_is_cancelled_in_every_phase(
    start_gateway: StartGateway, start_upstream: StartUpstream, phase: str
) -> None:
    up = await start_upstream(
        sends_and_hangs(CHUNKED_STREAM, EVENT) if phase == "stream" else sends_and_hangs()
    )
    planner = {"type": "proxy", "proxy_url": up.url, "max_in_flight": 1}
    gateway = await start_gateway(models={"planner": planner})

    async def one_is(phase: str) -> str | None:
        for each in (await get(gateway, "requests"))["requests"]:
            if each["phase"] == phase:
                return str(each["request_id"])
        return None

    async with asking(gateway, "planner", stream=True) as first:
        await eventually(lambda: up.conversations, what="it is sent")
        async with asking(gateway, "planner", stream=True) as second:
            await eventually(lambda: gateway.queued("planner") == 1, what="another waits")
            request_id = await eventually(lambda: one_is(phase), what=f"one is in {phase}")
            reply = await call(gateway, "DELETE", f"requests/{request_id}")
            assert (reply.status, reply.json) == (200, {"status": "cancelled"})
            client = second if phase == "queue" else first
            said = await client.rest() if phase == "stream" else (await client.reply()).body
            assert b"an operator cancelled this request" in said
            if phase != "queue":
                await eventually(lambda: gateway.queued("planner") == 0, what="the slot is free")
    record = gateway.gateway._inference.log.history.find(str(request_id))
    assert record[0]["reason"] == "an operator cancelled this request"


# --- nodes ------------------------------------------------------------------------------------


async def test_a_drained_node_gets_nothing_new_and_finishes_what_it_has(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    release = asyncio.Event()
    gateway = await start_gateway()
    up = await start_upstream(held(release))
    await gateway.register("box", up)
    async with asking(gateway) as client:
        await eventually(lambda: up.conversations, what="it runs")
        reply = await call(gateway, "POST", "nodes/box/drain")
        assert (reply.status, reply.json) == (200, {"node_id": "box", "drained": True})
        refused = await gateway.chat()
        assert (refused.status, refused.error["reason"]) == (503, "box: drained by an operator")
        (box,) = (await get(gateway, "status"))["nodes"]
        assert (box["state"], box["drained"]) == ("live", True)
        assert box["reason"] == "drained by an operator"
        assert gateway.lifecycle.status().endswith("1/1 nodes live; drained: box")
        release.set()
        assert (await client.reply()).status == 200
    reply = await call(gateway, "POST", "nodes/box/undrain")
    assert reply.json == {"node_id": "box", "drained": False}
    assert (await gateway.chat()).status == 200


# --- reload -----------------------------------------------------------------------------------


async def test_a_reload_is_over_when_it_is_answered(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    gateway.write({"models": {"poet": DISCOVERED}})
    reply = await call(gateway, "POST", "reload")
    assert reply.status == 200
    assert reply.json == {"status": "reloaded", "generation": 2, "warnings": []}
    assert [each["alias"] for each in (await get(gateway, "aliases"))["aliases"]] == ["poet"]


async def test_a_refused_reload_says_everything_that_is_wrong(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    gateway.write({"models": {"coder": {"type": "nonsense"}}, "limits": {"max_queue": -1}})
    reply = await call(gateway, "POST", "reload")
    assert (reply.status, reply.error["code"]) == (422, "config_refused")
    keys = {problem["key"] for problem in reply.error["problems"]}
    assert keys == {"models.coder.type", "limits.max_queue"}
    assert all(problem["where"] and problem["message"] for problem in reply.error["problems"])
    assert (await get(gateway, "status"))["config_generation"] == 1
