"""Whether upstreams answer: what each kind of server makes of a probe."""

from typing import Any

import pytest

from rolemesh.gateway import health as health_module
from tests.fakes import upstream_kinds as replies
from tests.fakes.upstream import (
    LAST_CHUNK,
    Conversation,
    Script,
    answers,
    chunk,
    reply,
    sends_and_closes,
    sends_and_hangs,
)
from tests.gateway.conftest import StartGateway, StartUpstream
from tests.gateway.harness import Running
from tests.lab.poll import eventually

OK = answers(b"{}")
LOADING = answers(b'{"error":{"message":"Loading model","type":"unavailable_error"}}', 503)


async def like_ollama(conversation: Conversation) -> None:
    """Answer /v1/models, and 404 to anything else."""
    found = conversation.method_and_path == "GET /v1/models"
    await conversation.send(reply(b"{}", 200 if found else 404))


async def planner(gateway: Running) -> tuple[bool, str]:
    """Return whether the alias planner is usable, and why not."""
    tree = (await gateway.get("/v1/models")).json
    unavailable = {each["id"]: each["reason"] for each in tree["rolemesh"]["unavailable_models"]}
    return bool(tree["data"]), unavailable.get("planner", "")


def proxy(url: str) -> dict[str, Any]:
    return {"planner": {"type": "proxy", "proxy_url": url}}


@pytest.fixture(autouse=True)
def in_no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only what is asked for happen: no probes in the background."""
    monkeypatch.setattr(health_module, "PERIOD_UP_S", 60)
    monkeypatch.setattr(health_module, "PERIOD_DOWN_S", 60)
    monkeypatch.setattr(health_module, "FRESH_S", -1)
    monkeypatch.setattr(health_module, "PROBE_TIMEOUT_S", 0.2)


@pytest.mark.parametrize(
    ("probe", "usable", "reason"),
    [
        (OK, True, ""),
        (like_ollama, True, ""),
        (answers(b"{}", 401), False, "wants a key, and none is set"),
        (LOADING, True, ""),
        (answers(b"{}", 503), False, "answers its health check with 503"),
        (answers(b"not json", 500), False, "answers its health check with 500"),
        (sends_and_closes(), False, "closed before the response was whole"),
        (sends_and_closes(b"garbage\r\n\r\n"), False, "malformed"),
        (sends_and_hangs(), False, "no reply within 0.2 s"),
    ],
)
async def test_an_upstream_is_usable_when_it_answers_its_probe(
    start_gateway: StartGateway,
    start_upstream: StartUpstream,
    probe: Script,
    usable: bool,
    reason: str,
) -> None:
    up = await start_upstream(OK, probe=probe)
    gateway = await start_gateway(models=proxy(up.url))
    assert (found := await planner(gateway))[0] is usable
    assert reason in found[1]
    assert usable or up.url in found[1]


async def test_nothing_is_called_usable_before_it_was_looked_at(
    start_gateway: StartGateway, start_upstream: StartUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "PROBE_TIMEOUT_S", 60)
    monkeypatch.setattr(health_module, "LISTING_WAIT_S", 0.05)
    up = await start_upstream(OK, probe=sends_and_hangs())
    gateway = await start_gateway(models=proxy(up.url))
    assert await planner(gateway) == (False, "its upstream was not looked at yet")


async def test_an_upstream_that_is_slow_to_say_anything_delays_no_listing(
    start_gateway: StartGateway, start_upstream: StartUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "LISTING_WAIT_S", 0.05)
    up = await start_upstream(OK, probe=sends_and_hangs())
    gateway = await start_gateway(models=proxy(up.url))

    async def is_down() -> bool:
        return "no reply within 0.2 s" in (await planner(gateway))[1]

    await eventually(is_down, what="it is known to be down")
    monkeypatch.setattr(health_module, "PROBE_TIMEOUT_S", 600)
    monkeypatch.setattr(health_module, "LISTING_WAIT_S", 600)
    assert not (await planner(gateway))[0]  # which takes no 600 s
    assert (await gateway.get("/ready")).status == 503


async def test_a_listing_looks_again_and_a_request_does_when_it_would_be_refused(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(OK, probe=answers(b"{}", 500))
    gateway = await start_gateway(models=proxy(up.url))
    assert not (await planner(gateway))[0]
    up.probe = OK
    assert (await gateway.chat("planner")).status == 200
    up.probe = answers(b"{}", 500)
    assert not (await planner(gateway))[0]


async def test_what_was_seen_a_moment_ago_is_not_looked_at_again(
    start_gateway: StartGateway, start_upstream: StartUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "FRESH_S", 60)
    up = await start_upstream(OK)
    gateway = await start_gateway(models=proxy(up.url))
    for _ in range(3):
        assert (await planner(gateway))[0]
    assert up.probes == 1


async def test_a_failed_request_has_its_upstream_looked_at_at_once(
    start_gateway: StartGateway, start_upstream: StartUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = await start_upstream(sends_and_closes())
    gateway = await start_gateway(models=proxy(up.url))
    assert (await planner(gateway))[0]
    monkeypatch.setattr(health_module, "FRESH_S", 60)
    before, up.probe = up.probes, answers(b"{}", 500)
    assert (await gateway.chat("planner")).status == 502
    await eventually(lambda: up.probes > before, what="it was looked at")
    assert not (await planner(gateway))[0]


async def test_upstreams_are_looked_at_in_the_background_too(
    start_gateway: StartGateway, start_upstream: StartUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "PERIOD_UP_S", 0.02)
    monkeypatch.setattr(health_module, "PERIOD_DOWN_S", 0.02)
    up = await start_upstream(OK)
    gateway = await start_gateway(models=proxy(up.url))
    await eventually(lambda: up.probes > 3, what="it is looked at again and again")
    await gateway.reload({"models": {}})
    before = up.probes
    assert (await gateway.get("/v1/models")).json["data"] == []
    assert up.probes <= before + 1  # the one under way


@pytest.mark.parametrize(
    ("probe", "state"), [(OK, "live"), (answers(b"{}", 503), "live"), (sends_and_closes(), "lost")]
)
async def test_a_node_that_failed_a_request_stays_only_if_it_answers(
    start_gateway: StartGateway, start_upstream: StartUpstream, probe: Script, state: str
) -> None:
    up = await start_upstream(sends_and_closes(), probe=probe)
    gateway = await start_gateway()
    await gateway.register("box", up)
    assert (await gateway.chat()).status == 502
    await eventually(lambda: up.probes, what="it was looked at")
    await eventually(lambda: gateway.node_state("box") == state, what=f"it is {state}")
    await gateway.register("box", up)
    assert gateway.node_state("box") == "live"


# --- what is asked of each kind of server -----------------------------------------------------


class Kind:
    """A server that answers GET by path, and remembers what it was asked."""

    def __init__(self, **answers_: tuple[bytes, int]) -> None:
        self._answers = {f"/{path.replace('__', '/')}": each for path, each in answers_.items()}
        self.asked: list[str] = []
        self.keys: set[str | None] = set()

    async def __call__(self, conversation: Conversation) -> None:
        path = conversation.method_and_path.removeprefix("GET ")
        self.asked.append(path)
        self.keys.add(conversation.fields.get("authorization"))
        body, status = self._answers.get(path, (b"404 page not found", 404))
        await conversation.send(reply(body, status))


@pytest.mark.parametrize(
    ("kind", "model", "asked", "says"),
    [
        (Kind(v1__models=(replies.OLLAMA, 200)), "llama3", ["/v1/models"], ""),
        (Kind(v1__models=(replies.OLLAMA, 200)), "nosuch", ["/v1/models"], "has no model nosuch"),
        (
            Kind(v1__models=(replies.ROUTER, 200), props=(replies.ROUTER_PROPS, 200)),
            "tiny-2",
            ["/v1/models", "/props"],
            "",
        ),
        (
            Kind(v1__models=(replies.ROUTER, 200), props=(replies.ROUTER_PROPS_NO_AUTOLOAD, 200)),
            "tiny-2",
            ["/v1/models", "/props"],
            "has not loaded tiny-2",
        ),
        (
            Kind(v1__models=(replies.VLLM, 200), health=(b"", 200)),
            "Qwen/Qwen3-8B",
            ["/v1/models", "/health"],
            "",
        ),
        (
            Kind(v1__models=(replies.VLLM, 200), health=(b"", 503)),
            "Qwen/Qwen3-8B",
            ["/v1/models", "/health"],
            "answers its health check with 503",
        ),
        (Kind(v1__models=(replies.LITELLM, 200), health=(b"", 500)), "any", ["/v1/models"], ""),
        (
            Kind(v1__models=(replies.ROLEMESH, 200)),
            "coder",
            ["/v1/models"],
            "says of coder: box: stale: not heard for 47 s",
        ),
        (Kind(health=(b"", 200)), "any", ["/v1/models", "/health"], ""),
    ],
)
async def test_a_server_is_asked_what_its_kind_offers_and_nothing_else(
    start_gateway: StartGateway,
    start_upstream: StartUpstream,
    kind: Kind,
    model: str,
    asked: list[str],
    says: str,
) -> None:
    kind.asked.clear()
    up = await start_upstream(OK, probe=kind)
    entry = {**proxy(up.url)["planner"], "openai_model_name": model, "api_key": "sk-1"}
    gateway = await start_gateway(models={"planner": entry})
    usable, reason = await planner(gateway)
    assert usable is not bool(says)
    assert says in reason
    assert kind.asked[: len(asked)] == asked
    assert set(kind.asked) == set(asked)
    assert kind.keys == {"Bearer sk-1"}


async def test_what_ollama_streams_and_refuses_reaches_the_client_as_it_is(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    async def refuses(conversation: Conversation) -> None:
        await conversation.send(reply(replies.OLLAMA_UNKNOWN_MODEL, 404))

    async def streams(conversation: Conversation) -> None:
        await conversation.send(replies.OLLAMA_STREAM_HEAD)
        await conversation.send(*map(chunk, replies.OLLAMA_STREAM), LAST_CHUNK)

    probe = Kind(v1__models=(replies.OLLAMA, 200))
    up = await start_upstream(streams, refuses, probe=probe)
    entry = {**proxy(up.url)["planner"], "defaults": {"model": "llama3"}}
    gateway = await start_gateway(models={"planner": entry})
    streamed = await gateway.chat("planner", stream=True)
    assert streamed.fields["content-type"] == "text/event-stream"
    assert streamed.body == b"".join(replies.OLLAMA_STREAM)
    refused = await gateway.chat("planner")
    assert (refused.status, refused.body) == (404, replies.OLLAMA_UNKNOWN_MODEL)
    assert [each.json["model"] for each in up.conversations] == ["llama3", "llama3"]
