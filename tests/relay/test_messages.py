"""Streams of `/v1/messages` as llama-server 0.7.0 sends them, and the plain reply each makes."""

import json
from typing import Any

import pytest

from rolemesh.relay.assembly import Answer, AssemblyError
from rolemesh.relay.messages import MessagesAssembly

MESSAGE: dict[str, Any] = {
    "id": "chatcmpl-1",
    "type": "message",
    "role": "assistant",
    "content": [],
    "model": "m",
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {"cache_read_input_tokens": 13, "input_tokens": 1, "output_tokens": 0},
}


def event(kind: str, **rest: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (
        kind.encode(),
        json.dumps({"type": kind, **rest}).encode(),
    )


def block(index: int, **content: Any) -> bytes:
    return event("content_block_start", index=index, content_block=content)


def delta(index: int, kind: str, **piece: str) -> bytes:
    return event("content_block_delta", index=index, delta={"type": f"{kind}_delta", **piece})


START = event("message_start", message=MESSAGE)
TEXT = block(0, type="text", text="")
PING = event("ping")
STOP = event("message_stop")


def ends(reason: str = "end_turn", sequence: str | None = None, tokens: int = 4) -> bytes:
    said = {"stop_reason": reason, "stop_sequence": sequence}
    return event("message_delta", delta=said, usage={"output_tokens": tokens}) + STOP


def assembled(*events: bytes, begun: str = "") -> Any:
    """Return the tree of the reply; the stream is cut in every way, which must not matter."""
    stream = b"".join(events)
    answers = set()
    for size in (1, 7, len(stream)):
        assembly = MessagesAssembly(begun)
        for start in range(0, len(stream), size):
            assembly.feed(stream[start : start + size])
        answers.add(assembly.end())
    (answer,) = answers
    assert answer.status == 200
    return json.loads(answer.body)


def test_text() -> None:
    said = (delta(0, "text", text="He"), delta(0, "text", text="llo"))
    assert assembled(START, TEXT, *said, event("content_block_stop", index=0), ends()) == {
        **MESSAGE,
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "usage": {"cache_read_input_tokens": 13, "input_tokens": 1, "output_tokens": 4},
    }


def test_nothing_at_all() -> None:
    reply = assembled(START, ends(sequence="Hello"))
    assert (reply["content"], reply["stop_sequence"]) == ([], "Hello")


def test_what_the_client_began_is_repeated() -> None:
    said = (START, TEXT, delta(0, "text", text="llo"), ends())
    assert assembled(*said, begun="He")["content"] == [{"type": "text", "text": "Hello"}]
    assert assembled(START, ends(), begun="He")["content"] == [{"type": "text", "text": "He"}]


def test_thinking_has_a_signature() -> None:
    reply = assembled(
        START,
        block(0, type="thinking", thinking=""),
        delta(0, "thinking", thinking="so "),
        delta(0, "thinking", thinking="be it"),
        block(1, type="text", text=""),
        delta(1, "text", text="Yes"),
        delta(0, "signature", signature=""),
        ends(),
    )
    assert reply["content"] == [
        {"type": "thinking", "thinking": "so be it", "signature": ""},
        {"type": "text", "text": "Yes"},
    ]


def call(index: int, name: str, *pieces: str) -> bytes:
    begin = block(index, type="tool_use", id=f"id-{name}", name=name)
    return begin + b"".join(delta(index, "input_json", partial_json=piece) for piece in pieces)


@pytest.mark.parametrize(
    ("pieces", "given"),
    [
        (('{"city"', ': "Rome"}'), {"city": "Rome"}),
        ((), {}),
        (('{"city": "Ro',), {}),
        (("[1]",), [1]),
    ],
)
def test_what_a_tool_is_called_with_is_json_or_nothing(pieces: tuple[str, ...], given: Any) -> None:
    reply = assembled(START, call(0, "look", *pieces), ends("tool_use"))
    expected = {"type": "tool_use", "id": "id-look", "name": "look", "input": given}
    assert reply["content"] == [expected]


def test_text_that_begins_after_a_call_has_its_index_but_stands_before_it() -> None:
    reply = assembled(
        START,
        call(0, "look", "{}"),
        TEXT,
        delta(0, "text", text="I looked"),
        call(2, "go", '{"to": 1}'),
        delta(0, "text", text=" and went"),
        ends("tool_use"),
    )
    assert reply["content"] == [
        {"type": "text", "text": "I looked and went"},
        {"type": "tool_use", "id": "id-look", "name": "look", "input": {}},
        {"type": "tool_use", "id": "id-go", "name": "go", "input": {"to": 1}},
    ]


def test_an_error_in_the_middle_is_the_answer() -> None:
    error = b'{"code":500,"message":"Context size has been exceeded.","type":"server_error"}'
    assembly = MessagesAssembly()
    assert assembly.feed(START + TEXT + b"event: error\ndata: %b\n\n" % error)
    assert assembly.end() == Answer(status=500, body=b'{"error":%b}' % error)


def test_an_error_that_anthropic_itself_would_send_is_the_answer_too() -> None:
    assembly = MessagesAssembly()
    error = {"type": "overloaded_error", "message": "x", "code": 503}
    assembly.feed(START + event("error", error=error))
    answer = assembly.end()
    assert (answer.status, json.loads(answer.body)["error"]) == (503, error)


def test_a_ping_is_no_sign_of_an_answer() -> None:
    assembly = MessagesAssembly()
    assert not assembly.feed(PING)
    assert assembly.feed(START)
    assert assembly.feed(TEXT)


@pytest.mark.parametrize("stream", [b"", START, START + TEXT, START + ends().removesuffix(STOP)])
def test_a_stream_that_ends_early_is_no_answer(stream: bytes) -> None:
    assembly = MessagesAssembly()
    assembly.feed(stream)
    with pytest.raises(AssemblyError, match="before the answer was whole"):
        assembly.end()


@pytest.mark.parametrize(
    "stream",
    [
        ends(),
        event("message_start"),
        START + delta(0, "input_json", partial_json="{}"),
        START + delta(0, "text", text="x", more="y"),
        START + event("content_block_delta", index="0", delta={"type": "text_delta", "text": ""}),
        START + event("content_block_delta", index=0, delta={"type": "text_delta", "text": 5}),
        START + event("content_block_delta", index=0, delta={"type": "text_delta"}),
        START + event("message_delta", delta=[]),
        b"data: [1]\n\n",
        b"data: {\n\n",
        START + ends() + PING,
    ],
)
def test_what_is_no_stream_of_messages_is_refused(stream: bytes) -> None:
    with pytest.raises(AssemblyError):
        MessagesAssembly().feed(stream)


def test_a_message_without_bounds_is_refused() -> None:
    assembly = MessagesAssembly(limit_bytes=300)
    words = delta(0, "text", text="word ") * 100
    with pytest.raises(AssemblyError, match="larger than 300 bytes"):
        assembly.feed(START + TEXT + words)
