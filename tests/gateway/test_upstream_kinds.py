"""What is made of the answers of each kind of server."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from rolemesh.gateway.upstream_kinds import (
    HEALTH_PATH,
    PROPS_PATH,
    Answer,
    Health,
    Kind,
    health_of,
    next_question,
    read_answers,
)
from rolemesh.wire import ModelState
from tests.fakes import upstream_kinds as replies

URL = "http://up:1"
OK = Answer(status=200, body=b"")
UP = Health()
NO_AUTOLOAD = "has not loaded {}, and loads no model by itself (--no-models-autoload)"


def listing(body: bytes) -> Answer:
    return Answer(status=200, body=body)


def health(
    model: str, models: Answer, second: Answer | None = None, *, has_key: bool = False
) -> Health:
    return health_of(read_answers(URL, models, second, has_key=has_key), model)


def down(reason: str) -> Health:
    return Health(down=f"{URL} {reason}")


@pytest.mark.parametrize(
    ("body", "kind", "asks"),
    [
        (replies.LLAMA_SERVER, Kind.OTHER, None),
        (replies.ROUTER, Kind.ROUTER, PROPS_PATH),
        (replies.router(a={"value": "loaded"}), Kind.ROUTER, None),
        (replies.OLLAMA, Kind.OLLAMA, None),
        (replies.OLLAMA_EMPTY, Kind.OLLAMA, None),
        (replies.VLLM, Kind.VLLM, HEALTH_PATH),
        (replies.LITELLM, Kind.OTHER, None),
        (replies.ROLEMESH, Kind.ROLEMESH, None),
        (b"{}", Kind.OTHER, None),
        (b"[]", Kind.OTHER, None),
        (b"no JSON", Kind.OTHER, None),
        (b'{"data": 5}', Kind.OTHER, None),
        (b'{"data": [5, {"id": 5}, {"owned_by": []}]}', Kind.OTHER, None),
    ],
)
def test_a_server_is_known_by_its_list_of_models(body: bytes, kind: Kind, asks: str | None) -> None:
    models = listing(body)
    assert read_answers(URL, models, None, has_key=False).kind is kind
    assert next_question(models) == asks


@pytest.mark.parametrize("status", [404, 405])
def test_health_is_asked_where_there_is_no_list_and_not_where_there_is(status: int) -> None:
    absent = Answer(status=status, body=b"{}")
    assert next_question(absent) == HEALTH_PATH
    assert health("m", absent, OK) == UP
    assert health("m", absent, Answer(status=503, body=b"")) == down(
        "answers its health check with 503"
    )
    for status in (200, 400, 401, 403, 429, 500, 503):
        assert next_question(Answer(status=status, body=replies.LITELLM)) is None


# --- any server -------------------------------------------------------------------------------


def test_a_llama_server_that_loads_is_loading() -> None:
    answer = Answer(status=503, body=replies.LLAMA_SERVER_LOADING)
    assert health("m", answer) == Health(state=ModelState.LOADING)


@pytest.mark.parametrize(
    ("answer", "has_key", "reason"),
    [
        (
            Answer(status=401, body=replies.LLAMA_SERVER_KEY),
            True,
            "does not accept our key (api_key, api_key_file): 401 (Invalid API Key)",
        ),
        (
            Answer(status=401, body=b'{"error":"Unauthorized"}'),
            False,
            "wants a key, and none is set (api_key, api_key_file): 401 (Unauthorized)",
        ),
        (
            Answer(status=400, body=replies.LITELLM_KEY),
            True,
            "answers its health check with 400 (No connected db.)",
        ),
        (Answer(status=500, body=b"<html>"), False, "answers its health check with 500"),
        (
            Answer(status=503, body=b'{"error": {"message": "%b"}}' % (b"a" * 200)),
            False,
            f"answers its health check with 503 ({'a' * 120}...)",
        ),
        (
            Answer(status=301, body=b"", location="https://up/v1/models"),
            False,
            "redirects to https://up/v1/models (301); correct proxy_url",
        ),
    ],
)
def test_an_answer_that_refuses_says_why(answer: Answer, has_key: bool, reason: str) -> None:
    assert health("m", answer, has_key=has_key) == down(reason)


@pytest.mark.parametrize("status", [403, 429])
def test_who_may_not_list_models_may_still_use_them(status: int) -> None:
    assert health("m", Answer(status=status, body=b"{}")) == UP


@pytest.mark.parametrize("body", [replies.LLAMA_SERVER, replies.LITELLM, b"{}", b"OK"])
def test_a_server_that_may_answer_for_any_model_is_taken_at_its_word(body: bytes) -> None:
    assert health("nowhere on the list", listing(body)) == UP


# --- llama-server's router --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "state"),
    [
        ("tiny-1", ModelState.READY),
        ("tiny_1-alias", ModelState.READY),
        ("tiny-2", ModelState.COLD),
        ("tiny-3", ModelState.LOADING),
        ("tiny-4", ModelState.READY),
        ("bad", ModelState.FAILED),
    ],
)
def test_a_router_answers_for_what_it_can_load(model: str, state: ModelState) -> None:
    models, props = listing(replies.ROUTER), listing(replies.ROUTER_PROPS)
    assert health(model, models, props) == Health(state=state)


@pytest.mark.parametrize("model", ["tiny-2", "bad"])
def test_a_router_that_loads_nothing_by_itself_has_only_what_is_loaded(model: str) -> None:
    models, props = listing(replies.ROUTER), listing(replies.ROUTER_PROPS_NO_AUTOLOAD)
    assert health("tiny-1", models, props) == UP
    assert health(model, models, props) == down(NO_AUTOLOAD.format(model))


def test_a_router_refuses_what_it_does_not_have() -> None:
    assert health("nosuch", listing(replies.router(a={"value": "loaded"}))) == down(
        "has no model nosuch (it has a)"
    )


# --- Ollama -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        "llama3",
        "llama3:latest",
        "LLAMA3",
        "library/llama3",
        "registry.ollama.ai/library/llama3:latest",
        "qwen2.5-coder:7b",
        "someone/tuned",
        "gpt-oss:120b-cloud",
    ],
)
def test_ollama_answers_for_what_was_pulled(model: str) -> None:
    assert health(model, listing(replies.OLLAMA)) == UP


@pytest.mark.parametrize("model", ["mistral", "qwen2.5-coder", "llama3:70b"])
def test_ollama_refuses_what_was_not_pulled(model: str) -> None:
    assert health(model, listing(replies.OLLAMA)) == down(
        f"has no model {model} (it has llama3:latest, qwen2.5-coder:7b, someone/tuned:latest)"
    )
    assert health(model, listing(replies.OLLAMA_EMPTY)) == down(
        f"has no model {model} (it has none at all)"
    )


# --- vLLM, RoleMesh ---------------------------------------------------------------------------


def test_vllm_answers_for_what_it_serves_while_its_engine_lives() -> None:
    models, dead = listing(replies.VLLM), Answer(status=503, body=b"")
    assert health("Qwen/Qwen3-8B", models, OK) == UP
    assert health("Qwen/Qwen3-8B", models, dead) == down("answers its health check with 503")
    assert health("coder", models, OK) == down("has no model coder (it has Qwen/Qwen3-8B)")


def test_another_rolemesh_says_itself_why_an_alias_is_unavailable() -> None:
    models = listing(replies.ROLEMESH)
    assert health("planner", models) == UP
    assert health("coder", models) == down("says of coder: box: stale: not heard for 47 s")
    assert health("critic", models) == down("has no model critic (it has planner)")


def test_of_many_models_a_message_names_a_few() -> None:
    many = {f"m{index}": {"value": "loaded"} for index in range(20)}
    assert health("x", listing(replies.router(**many))).down.endswith(
        "(it has m0, m1, m2, m3, m4, m5, m6, m7 and 12 more)"
    )


def altered(tree: Any) -> Iterator[Any]:
    """Yield the tree with each of its values replaced by one of another type."""
    yield from (None, 5, "x", [], {}, [[]], [None])
    for key, value in tree.items() if isinstance(tree, dict) else ():
        for other in altered(value):
            yield {**tree, key: other}
    for index, value in enumerate(tree) if isinstance(tree, list) else ():
        for other in altered(value):
            yield [*tree[:index], other, *tree[index + 1 :]]


@pytest.mark.parametrize("body", [replies.ROUTER, replies.OLLAMA, replies.ROLEMESH, replies.VLLM])
def test_no_answer_is_more_than_can_be_read(body: bytes) -> None:
    for tree in altered(json.loads(body)):
        models = listing(json.dumps(tree).encode())
        question = next_question(models)
        for second in (None, OK, models) if question else (None,):
            health("tiny-1", models, second)
