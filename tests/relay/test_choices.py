"""Streams as llama-server sends them, and the plain reply each makes."""

import contextlib
import json
from typing import Any

import pytest

from rolemesh.relay.assembly import Answer, AssemblyError
from rolemesh.relay.choices import ChoicesAssembly

DONE = b"data: [DONE]\n\n"
HEAD = {"created": 1, "id": "chatcmpl-1", "model": "m", "object": "chat.completion.chunk"}


def event(tree: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(tree).encode()


def chat(delta: dict[str, Any], index: int = 0, finish: str | None = None, **head: Any) -> bytes:
    choice = {"finish_reason": finish, "index": index, "delta": delta}
    return event({"choices": [choice], **HEAD, **head})


def text(said: str, index: int = 0, finish: str | None = None, **head: Any) -> bytes:
    choice = {"text": said, "index": index, "logprobs": None, "finish_reason": finish}
    return event({"choices": [choice], "object": "text_completion", **head})


def numbers(**head: Any) -> bytes:
    """Return the event that follows the last one of a choice."""
    return event({"choices": [], **HEAD, **head})


ROLE = chat({"role": "assistant", "content": None})


def assembled(*events: bytes) -> Any:
    """Return the tree of the reply; the stream is cut in every way, which must not matter."""
    stream = b"".join(events)
    answers = set()
    for size in (1, 7, len(stream)):
        assembly = ChoicesAssembly()
        for start in range(0, len(stream), size):
            assembly.feed(stream[start : start + size])
        answers.add(assembly.end())
    (answer,) = answers
    assert answer.status == 200
    return json.loads(answer.body)


def message(*deltas: dict[str, Any]) -> Any:
    tree = assembled(ROLE, *map(chat, deltas), chat({}, finish="stop"), DONE)
    return tree["choices"][0]["message"]


# --- what is merged ---------------------------------------------------------------------------


def test_a_chat() -> None:
    usage, timings = {"usage": {"total_tokens": 3}}, {"timings": {"cache_n": 0}}
    tree = assembled(
        ROLE,
        chat({"content": "Hel"}),
        chat({"content": "lo"}, created=2),
        chat({}, finish="stop", created=3),
        numbers(**usage, **timings, created=3),
        DONE,
    )
    assert tree == {
        "choices": [
            {
                "finish_reason": "stop",
                "index": 0,
                "message": {"role": "assistant", "content": "Hello"},
            }
        ],
        **HEAD,
        "object": "chat.completion",
        "created": 3,
        **usage,
        **timings,
    }


def test_a_text() -> None:
    tree = assembled(text("Hel"), text("lo"), text("", finish="length", usage={"x": 1}), DONE)
    assert tree == {
        "choices": [{"text": "Hello", "index": 0, "logprobs": None, "finish_reason": "length"}],
        "object": "text_completion",
        "usage": {"x": 1},
    }


def test_several_choices_keep_apart_and_the_numbers_are_those_of_the_first() -> None:
    tree = assembled(
        event(None),
        text("a", index=1),
        text("b", index=0),
        text("B", index=0, finish="stop", usage="of 0", id="0"),
        text("A", index=1, finish="length", usage="of 1", id="1"),
        DONE,
    )
    said = [(each["index"], each["text"], each["finish_reason"]) for each in tree["choices"]]
    assert said == [(0, "bB", "stop"), (1, "aA", "length")]
    assert (tree["usage"], tree["id"]) == ("of 0", "0")


def test_numbers_without_a_choice_are_of_the_choice_before() -> None:
    tree = assembled(
        chat({"content": "a"}, index=0),
        chat({"content": "b"}, index=1),
        chat({}, index=0, finish="stop"),
        numbers(usage="of 0"),
        chat({}, index=1, finish="stop"),
        numbers(usage="of 1"),
        DONE,
    )
    assert tree["usage"] == "of 0"


def test_tool_calls_grow_by_their_index() -> None:
    said = message(
        {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{"}}]},
        {"tool_calls": [{"index": 0, "id": "a", "type": "function"}]},
        {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": '{"x"'}}]},
        {"tool_calls": [{"index": 0, "id": "a", "function": {"arguments": ": 1}"}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "}"}}]},
    )
    assert said == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
            {"id": "b", "function": {"name": "g", "arguments": "{}"}},
        ],
    }


def test_reasoning_and_what_nobody_knows_yet() -> None:
    said = message(
        {"reasoning_content": "I th"},
        {"reasoning_content": "ink", "new": {"text": "a", "number": 1, "empty": None}},
        {"new": {"text": "b", "number": 2, "empty": None}, "list": [1], "flag": True},
        {"list": [2], "role": "user", "flag": None},
        {"content": "So"},
    )
    assert said == {
        "role": "assistant",
        "content": "So",
        "reasoning_content": "I think",
        "new": {"text": "ab", "number": 2, "empty": None},
        "list": [1, 2],
        "flag": True,
    }


def test_a_chat_whose_role_was_never_said_and_that_says_nothing() -> None:
    tree = assembled(chat({}, finish="stop"), DONE)
    assert tree["choices"][0]["message"] == {"role": "assistant", "content": ""}


def test_a_report_of_progress_is_not_in_the_reply_but_what_comes_with_it_is() -> None:
    assembly = ChoicesAssembly()
    assert not assembly.feed(chat({"role": "assistant", "content": None}, prompt_progress={"x": 1}))
    assert not assembly.feed(chat({"content": "Be"}, prompt_progress={"x": 2}))
    assert assembly.feed(chat({"content": "gun"}))
    assembly.feed(DONE)
    tree = json.loads(assembly.end().body)
    assert tree["choices"][0]["message"]["content"] == "Begun"
    assert "prompt_progress" not in tree


def test_text_passes_unchanged() -> None:
    words = '\u00e9\u65e5\U0001f600\ufffd\u2028"\\\n\x00'
    raw = f'data: {{"choices": [{{"index": 0, "text": {json.dumps(words)}}}]}}\n\n'.encode()
    assert assembled(raw, DONE)["choices"][0]["text"] == words
    assert assembled(text(words), DONE)["choices"][0]["text"] == words


def test_numbers_keep_their_value() -> None:
    timings = {"a": 8009.858287122613, "b": 0.1, "c": 12345678901234567890, "d": 1e-300}
    assert assembled(text("x", timings=timings), DONE)["timings"] == timings


# --- lines ------------------------------------------------------------------------------------


def test_comments_other_fields_and_line_ends_do_not_matter() -> None:
    stream = (
        b": ping\r\n\r\nevent: message\r\nid: 1\r\n"
        + text("a").replace(b"\n", b"\r\n")
        + b":\n\nretry: 10\n"
        + text("b").replace(b"data: ", b"data:")
        + b"data: [DONE]\r\n\r\n: bye\n"
    )
    assert assembled(stream)["choices"][0]["text"] == "ab"


def test_only_what_makes_the_answer_grow_is_progress() -> None:
    assembly = ChoicesAssembly()
    for nothing in (b": ping\n\n", b"\n", b"data: null\n\n", b"event: x\n", text("a")[:-3], b""):
        assert not assembly.feed(nothing)
    assert assembly.feed(b"}\n\n")
    assert assembly.feed(b": ping\n" + text("b") + b": ping\n")
    assert not assembly.feed(DONE)


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 500, "message": "Context size has been exceeded."}, 500),
        ({"code": 400, "message": "no", "type": "invalid_request_error"}, 400),
        ({"code": 503}, 503),
        ({"code": 200}, 500),
        ({"code": "503"}, 500),
        ({"code": 1000}, 500),
        ({}, 500),
        ("it broke", 500),
        (None, 500),
    ],
)
def test_an_error_is_the_answer_as_it_came_with_its_status(error: Any, status: int) -> None:
    for rest in (b"", DONE, text("b"), b"data: {\n"):
        assembly = ChoicesAssembly()
        assembly.feed(text("a"))
        assert assembly.feed(event({"error": error}))
        assembly.feed(rest)
        body = json.dumps({"error": error}).encode()
        assert assembly.end() == Answer(status=status, body=body)


BEGUN = text("a")


@pytest.mark.parametrize(
    "stream",
    [
        BEGUN + b"data: {\n\n",
        BEGUN + b"data: \n\n",
        BEGUN + b'data: "text"\n\n',
        BEGUN + b"data: [1]\n\n",
        BEGUN + b"data: \xff\n\n",
        BEGUN + b"data: " + b"[" * 200_000 + b"\n\n",
        BEGUN + event({"choices": {}}),
        BEGUN + event({"choices": ["a"]}),
        BEGUN + event({"choices": [{"text": "a"}]}),
        BEGUN + event({"choices": [{"index": "0", "text": "a"}]}),
        BEGUN + event({"choices": [{"index": 0, "text": 1}]}),
        BEGUN + event({"choices": [{"index": 0, "delta": "a"}]}),
        BEGUN + DONE + text("b"),
        BEGUN + DONE + b"data: garbage\n",
        BEGUN + DONE + DONE,
        BEGUN,
        BEGUN + DONE[:-4],
        BEGUN + text("b")[:-5],
        DONE,
        numbers() + DONE,
        b"",
        event({"choices": [{"index": 0, "text": "\ud800"}]}) + DONE,
    ],
)
def test_what_is_no_whole_stream_is_no_answer(stream: bytes) -> None:
    def take() -> None:
        assembly = ChoicesAssembly()
        assembly.feed(stream)
        assembly.end()

    with pytest.raises(AssemblyError):
        take()


@pytest.mark.parametrize("depth", range(100, 1000, 50))
def test_what_is_nested_too_deeply_is_malformed_wherever_it_is_noticed(depth: int) -> None:
    delta = '{"x": ' * depth + "{}" + "}" * depth
    stream = f'data: {{"choices": [{{"index": 0, "delta": {delta}}}]}}\n\n'.encode()
    assembly = ChoicesAssembly()
    with contextlib.suppress(AssemblyError):  # how deep is too deep is the interpreter's business
        assembly.feed(stream + DONE)
        assembly.end()


@pytest.mark.parametrize(
    "stream",
    [
        text("a" * 60) * 2,
        b"data: " + b"x" * 101,
        b": " + b"x" * 101,
        event({"choices": [{"index": 0, "delta": {"list": ["a" * 60]}}]}) * 2,
        chat({"tool_calls": [{"index": 0, "function": {"arguments": "a" * 60}}]}) * 2,
    ],
)
def test_an_answer_has_a_limit(stream: bytes) -> None:
    assembly = ChoicesAssembly(limit_bytes=100)
    with pytest.raises(AssemblyError, match="larger than 100 bytes"):
        assembly.feed(stream)


def test_the_limit_counts_the_answer_and_not_the_events() -> None:
    assembly = ChoicesAssembly(limit_bytes=300)
    for _ in range(200):
        assembly.feed(text("a"))
    assembly.feed(DONE)
    assert len(json.loads(assembly.end().body)["choices"][0]["text"]) == 200
