"""Which plain requests are asked for as streams."""

import json
from typing import Any

import pytest

from rolemesh.agent.streaming import SHORT_ANSWER_TOKENS, streamed
from rolemesh.relay.edit import RequestBody

CHAT, TEXT, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
ASKED = {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
USER = {"role": "user", "content": "hi"}
BEGUN = {"role": "assistant", "content": "Well, "}


def streamed_tree(path: str = CHAT, **body: Any) -> Any:
    """Return what is sent upstream as a stream, None when the request passes as it is."""
    sent = streamed(path, RequestBody.parse(json.dumps(body).encode()))
    return None if sent is None else json.loads(sent.body)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"stream": False},
        {"stream": None},
        {"max_tokens": SHORT_ANSWER_TOKENS + 1},
        {"max_tokens": -1},
        {"max_tokens": None},
        {"max_tokens": 1.0},
        {"max_tokens": "1"},
        {"max_tokens": 1, "n_predict": 1000},
        {"max_completion_tokens": 1000},
        {"n_predict": -2},
        {"logprobs": False, "n_probs": None, "verbose": False},
        {"stream_options": 5},
        {"return_progress": True},
        {"return_progress": False, "echo": None},
        {"n": 4},
    ],
)
def test_an_answer_that_may_be_long_is_asked_for_as_a_stream(
    path: str, body: dict[str, Any]
) -> None:
    assert streamed_tree(path, **body) == {**body, **ASKED}


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": SHORT_ANSWER_TOKENS},
        {"max_tokens": 0},
        {"max_completion_tokens": 1},
        {"n_predict": 1, "max_tokens": 2, "max_completion_tokens": 3},
        {"n_predict": 1, "max_tokens": None},
        {"stream": True},
        {"stream": 0},
        {"stream": "no"},
        {"logprobs": True, "top_logprobs": 2},
        {"logprobs": 2},
        {"logprobs": 0},
        {"n_probs": 3},
        {"verbose": True},
        {"return_progress": 1},
        {"echo": "yes"},
    ],
)
def test_what_is_short_or_would_be_another_answer_is_asked_for_as_it_is(
    body: dict[str, Any],
) -> None:
    assert streamed_tree(CHAT, **body) is None
    assert streamed_tree(TEXT, **body) is None


def test_only_completions_are_streamed() -> None:
    assert streamed_tree(EMBEDDINGS, input="x") is None


def test_the_clients_own_options_stay() -> None:
    options = {"include_usage": False, "new": 1}
    sent = streamed_tree(stream_options=options)
    assert sent["stream_options"] == {"include_usage": True, "new": 1}


@pytest.mark.parametrize(
    ("messages", "repeats"),
    [
        ([USER, BEGUN], True),
        ([BEGUN], True),
        ([USER], False),
        ([BEGUN, USER], False),
        ([], False),
        ("hi", False),
        ([USER, "hi"], False),
    ],
)
def test_an_answer_that_the_client_began_is_asked_for_with_its_beginning(
    messages: Any, repeats: bool
) -> None:
    sent = streamed_tree(messages=messages, echo=False)
    assert sent["echo"] is repeats
    assert ("echo" in streamed_tree(messages=messages)) is repeats


def test_every_other_value_is_sent_byte_for_byte() -> None:
    body = b'{ "stream" : false, "temperature":1.0, "k\\u0065y": [ 1e400 ] }'
    sent = streamed(CHAT, RequestBody.parse(body))
    assert sent is not None
    assert sent.body == (
        b'{"stream":true,"temperature":1.0,"key":[ 1e400 ],'
        b'"stream_options":{"include_usage": true},"return_progress":true}'
    )


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"stream": False, "max_tokens": None},
        {"max_tokens": 17},
        {"n": 3, "n_predict": 1, "logprobs": True, "return_progress": "no"},  # are not looked at
        {"messages": [USER]},
        {"messages": [USER, BEGUN]},
        {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]},
        {"messages": [BEGUN, USER]},
    ],
)
def test_a_message_that_may_be_long_is_asked_for_as_a_stream(body: dict[str, Any]) -> None:
    assert streamed_tree(MESSAGES, **body) == {**body, "stream": True}


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        [],
        5,
        [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        [{"type": "text"}],
        [{"type": "tool_use", "id": "x", "name": "y", "input": {}}],
        ["x"],
    ],
)
def test_a_message_begun_in_an_unusual_way_is_asked_for_as_it_is(content: Any) -> None:
    assert (
        streamed_tree(MESSAGES, messages=[USER, {"role": "assistant", "content": content}]) is None
    )


@pytest.mark.parametrize("body", [{"max_tokens": 16}, {"max_tokens": 0}, {"stream": True}])
def test_a_short_message_is_asked_for_as_it_is(body: dict[str, Any]) -> None:
    assert streamed_tree(MESSAGES, **body) is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"max_output_tokens": 17},
        {"max_output_tokens": 3, "n_predict": 100},
        {"n": 1, "n_cmpl": None, "logprobs": True, "return_progress": False},
    ],
)
def test_a_response_that_may_be_long_is_asked_for_as_a_stream(body: dict[str, Any]) -> None:
    asked = {"stream": True, "return_progress": True}
    assert streamed_tree(RESPONSES, **body) == {**body, **asked}


@pytest.mark.parametrize(
    "body",
    [
        {"max_output_tokens": 16},
        {"max_tokens": 5},
        {"stream": True},
        {"n": 2},
        {"n_cmpl": 2},
        {"return_progress": "yes"},
    ],
)
def test_a_response_that_is_short_or_several_is_asked_for_as_it_is(body: dict[str, Any]) -> None:
    assert streamed_tree(RESPONSES, **body) is None


def test_what_was_begun_of_a_message_is_given_to_what_assembles_it() -> None:
    body = RequestBody.parse(json.dumps({"messages": [USER, BEGUN]}).encode())
    asked = streamed(MESSAGES, body)
    assert asked is not None
    assembly = asked.assembly()
    assembly.feed(b'data: {"type": "message_start", "message": {}}\n\n')
    assembly.feed(b'data: {"type": "message_stop"}\n\n')
    assert json.loads(assembly.end().body)["content"] == [{"type": "text", "text": "Well, "}]
