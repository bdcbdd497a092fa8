"""Streams of `/v1/responses` as llama-server 0.7.0 sends them, and the plain reply each makes."""

import json
from typing import Any

import pytest

from rolemesh.relay.assembly import Answer, AssemblyError
from rolemesh.relay.responses import ResponsesAssembly

RESPONSE: dict[str, Any] = {"id": "resp_1", "object": "response", "created_at": 7, "model": "m"}
TEXT = {"type": "message", "status": "completed", "id": "msg_1", "content": [{"text": "Hello"}]}
THOUGHT = {"type": "reasoning", "id": "rs_1", "content": [{"text": "so"}]}


def event(kind: str, **rest: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (
        kind.encode(),
        json.dumps({"type": kind, **rest}).encode(),
    )


CREATED = event("response.created", response={"id": "resp_1", "status": "in_progress"})
PROGRESS = event("response.in_progress", response={"id": "resp_1"}, prompt_progress={"total": 9})
DELTA = event("response.output_text.delta", item_id="msg_1", delta="Hello")


def completed(*items: Any) -> bytes:
    whole = {**RESPONSE, "status": "completed", "output": list(items), "usage": {"x": 1}}
    return event("response.completed", response=whole, timings={"prompt_n": 1})


def test_the_reply_is_what_the_last_event_repeats() -> None:
    stream = CREATED + PROGRESS + DELTA + completed(THOUGHT, TEXT)
    for size in (1, 7, len(stream)):
        assembly = ResponsesAssembly()
        for start in range(0, len(stream), size):
            assembly.feed(stream[start : start + size])
        answer = assembly.end()
        assert answer.status == 200
        assert json.loads(answer.body) == {
            **RESPONSE,
            "completed_at": 7,
            "status": "completed",
            "output": [{**THOUGHT, "status": "completed"}, TEXT],
            "usage": {"x": 1},
        }


def test_reports_of_progress_are_no_sign_of_an_answer() -> None:
    assembly = ResponsesAssembly()
    assert not assembly.feed(CREATED + PROGRESS)
    assert assembly.feed(DELTA)


def test_an_error_in_the_middle_is_the_answer() -> None:
    error = b'{"error":{"code":500,"message":"Context size has been exceeded."}}'
    assembly = ResponsesAssembly()
    assembly.feed(CREATED + DELTA + b"data: %b\n\n" % error)
    assert assembly.end() == Answer(status=500, body=error)


@pytest.mark.parametrize("stream", [b"", CREATED + DELTA, CREATED + b"data: [DONE]\n\n"])
def test_a_stream_that_ends_early_is_no_answer(stream: bytes) -> None:
    assembly = ResponsesAssembly()
    assembly.feed(stream)
    with pytest.raises(AssemblyError, match="before the answer was whole"):
        assembly.end()


@pytest.mark.parametrize("response", [None, [], {"output": None}, {"output": [5]}])
def test_what_is_no_response_is_refused(response: Any) -> None:
    def assemble() -> None:
        assembly = ResponsesAssembly()
        assembly.feed(event("response.completed", response=response))
        assembly.end()

    with pytest.raises(AssemblyError):
        assemble()


def test_a_response_without_bounds_is_refused() -> None:
    with pytest.raises(AssemblyError, match="larger than 200 bytes"):
        ResponsesAssembly(limit_bytes=200).feed(b"data: " + b"x" * 300)
