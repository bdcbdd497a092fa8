"""Requests for many texts, as several for a few each."""

import json
from typing import Any

import pytest

from rolemesh.agent.batches import ROUNDS, BatchError, Batches, in_batches
from rolemesh.relay.edit import RequestBody

EMBEDDINGS, RERANK = "/v1/embeddings", "/v1/rerank"
SIX = ["a", "b", "c", "d", "e", "f"]


def batches(path: str, **body: Any) -> Batches | None:
    return in_batches(path, RequestBody.parse(json.dumps(body).encode()))


def asked(path: str, answer: Any, **body: Any) -> tuple[list[Any], Any]:
    """Ask for all; returns what was sent, and the whole answer; `answer` answers each."""
    found = batches(path, **body)
    assert found is not None
    sent = []
    for part in found.bodies(1):
        sent.append(json.loads(part))
        found.add(json.dumps(answer(sent[-1])).encode())
    return sent, json.loads(found.whole())


def embedded(body: dict[str, Any]) -> Any:
    texts = body["input"]
    data = [{"index": i, "embedding": [0.1, -1.5e-7], "text": each} for i, each in enumerate(texts)]
    return {"model": "m", "usage": {"prompt_tokens": len(texts)}, "data": data}


def test_embeddings_are_those_of_all_in_their_order() -> None:
    sent, answer = asked(EMBEDDINGS, embedded, input=SIX, dimensions=5)
    assert [body["input"] for body in sent] == [SIX[:ROUNDS], SIX[ROUNDS:]]
    assert all(body["dimensions"] == 5 for body in sent)
    assert answer == embedded({"input": SIX})


def test_texts_may_be_given_as_tokens() -> None:
    sent, _ = asked(EMBEDDINGS, embedded, input=[[1], [2, 3], [4], [5], [6]])
    assert [body["input"] for body in sent] == [[[1], [2, 3], [4], [5]], [[6]]]


SCORES = dict(zip(SIX, (0.3, -1.5, 0.9, 0.1, 0.95, 0.2), strict=True))


@pytest.mark.parametrize(("limit", "best"), [(None, [4, 2, 0, 5, 3, 1]), (3, [4, 2, 0])])
def test_ranks_are_sorted_anew(limit: int | None, best: list[int]) -> None:
    def ranked(body: dict[str, Any]) -> Any:
        results = [
            {"index": i, "relevance_score": SCORES[each]}
            for i, each in enumerate(body["documents"])
        ]
        return {"object": "list", "usage": {"total_tokens": 2}, "results": results}

    _, answer = asked(RERANK, ranked, documents=SIX, query="q", top_n=limit)
    assert [result["index"] for result in answer["results"]] == best
    assert [SCORES[SIX[i]] for i in best] == [r["relevance_score"] for r in answer["results"]]
    assert answer["usage"] == {"total_tokens": 4}


def test_an_answer_may_be_a_bare_list() -> None:
    def ranked(body: dict[str, Any]) -> Any:
        return [{"index": i, "score": SCORES[each]} for i, each in enumerate(body["texts"])]

    _, answer = asked(RERANK, ranked, texts=SIX, query="q")
    assert [result["index"] for result in answer] == [4, 2, 0, 5, 3, 1]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (EMBEDDINGS, {}),
        (EMBEDDINGS, {"input": "x"}),
        (EMBEDDINGS, {"input": list(range(100))}),
        (EMBEDDINGS, {"input": ["x", 1] * 50}),
        (EMBEDDINGS, {"input": SIX, "content": SIX}),
        (RERANK, {"documents": [{"text": "x"}] * 100}),
        ("/v1/completions", {"prompt": SIX}),
    ],
)
def test_all_else_is_asked_for_as_it_is(path: str, body: dict[str, Any]) -> None:
    assert batches(path, **body) is None


def test_it_is_worth_it_only_for_more_than_are_asked_for_at_once() -> None:
    found = batches(EMBEDDINGS, input=SIX)
    assert found is not None
    assert found.is_worth_it(1)
    assert not found.is_worth_it(2)


def test_what_would_be_too_large_is_seen_by_its_beginning() -> None:
    found = batches(EMBEDDINGS, input=["x"] * 4096)
    assert found is not None
    bodies = found.bodies(1)
    next(bodies)
    large = {"index": 0, "embedding": "x" * (1 << 16)}
    found.add(json.dumps({"usage": {}, "data": [large] * ROUNDS}).encode())
    assert found.is_too_large


@pytest.mark.parametrize("answer", [b"{", b"{}", b"5", b'{"data":[5]}', b'[{"embedding":1}]'])
def test_what_cannot_be_put_together_is_an_error(answer: bytes) -> None:
    found = batches(EMBEDDINGS, input=SIX)
    assert found is not None
    with pytest.raises(BatchError):
        found.add(answer)
