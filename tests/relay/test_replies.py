import json
from typing import Any

import pytest

from rolemesh import errors
from rolemesh.names import RequestId
from rolemesh.relay.replies import (
    Dialect,
    error_event,
    error_object,
    error_reply,
    json_reply,
    status_of,
)

ID = RequestId("req-1")

TABLE: list[tuple[errors.RoleMeshError, int, str, str]] = [
    (errors.BadRequest("x"), 400, "invalid_request_error", "bad_request"),
    (errors.NotAuthenticated("x"), 401, "authentication_error", "invalid_api_key"),
    (errors.NotAllowed("x"), 403, "permission_error", "not_allowed"),
    (errors.UnknownAlias("x", ()), 404, "invalid_request_error", "model_not_found"),
    (errors.UnknownInstance("x", ()), 404, "invalid_request_error", "unknown_instance"),
    (errors.UnknownPath("x"), 404, "invalid_request_error", "unknown_path"),
    (errors.MethodNotAllowed("x", ("GET",)), 405, "invalid_request_error", "method_not_allowed"),
    (errors.RequestTooSlow("x"), 408, "invalid_request_error", "request_too_slow"),
    (errors.BodyTooLarge(1), 413, "invalid_request_error", "body_too_large"),
    (errors.HeadTooLarge(1), 431, "invalid_request_error", "head_too_large"),
    (errors.QueueFull("x", retry_after_s=1), 429, "rate_limit_error", "queue_full"),
    (errors.QueueTimeout("x", retry_after_s=1), 429, "rate_limit_error", "queue_timeout"),
    (errors.RateLimited("x", retry_after_s=1), 429, "rate_limit_error", "rate_limited"),
    (errors.Cancelled("x"), 503, "unavailable_error", "cancelled"),
    (
        errors.RequestCrashesUpstream("x", upstream="u"),
        502,
        "upstream_error",
        "request_crashes_upstream",
    ),
    (errors.SlotsBusy("x", retry_after_s=1), 503, "unavailable_error", "slots_busy"),
    (
        errors.Unavailable("x", reason="r", retry_after_s=1),
        503,
        "unavailable_error",
        "unavailable",
    ),
    (errors.ConnectFailed("x", upstream="u"), 502, "upstream_error", "connect_failed"),
    (errors.NotVerified("x", upstream="u"), 502, "upstream_error", "connect_failed"),
    (errors.UpstreamBroke("x", upstream="u"), 502, "upstream_error", "upstream_broke"),
    (errors.ReplyTooLarge("x", upstream="u"), 502, "upstream_error", "upstream_broke"),
    (errors.StreamBroken("x", upstream="u"), 502, "upstream_error", "upstream_broke"),
    (
        errors.UpstreamTimeout("x", upstream="u", limit="idle_s"),
        504,
        "upstream_error",
        "upstream_timeout",
    ),
    (errors.RoleMeshError("x"), 500, "server_error", "internal_error"),
]


@pytest.mark.parametrize(("error", "status", "kind", "code"), TABLE)
def test_every_error_has_its_status_type_and_code(
    error: errors.RoleMeshError, status: int, kind: str, code: str
) -> None:
    reply = error_reply(error, ID)
    tree = json.loads(reply.body)["error"]
    assert status_of(error) == reply.status == tree["status"] == status
    assert (tree["type"], tree["code"]) == (kind, code)
    assert (tree["message"], tree["request_id"]) == (str(error), ID)
    assert dict(reply.fields)["Content-Type"].startswith("application/json")


def test_no_class_of_error_is_missing_from_the_table() -> None:
    def leaves(kind: type[errors.RoleMeshError]) -> set[type[errors.RoleMeshError]]:
        below = kind.__subclasses__()
        return set().union(*map(leaves, below)) if below else {kind}

    answered = (errors.RequestError, errors.CapacityError, errors.UpstreamError)
    wanted = set().union(*map(leaves, answered))
    assert wanted <= {type(error) for error, *_ in TABLE}


@pytest.mark.parametrize(("after_s", "text"), [(0.0, "1"), (0.2, "1"), (1.2, "2"), (30, "30")])
def test_who_may_come_back_is_told_when_in_whole_seconds(after_s: float, text: str) -> None:
    reply = error_reply(errors.QueueFull("x", retry_after_s=after_s), ID)
    assert dict(reply.fields)["Retry-After"] == text


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (errors.BadRequest("x", param="n"), "param", "n"),
        (errors.BadRequest("x"), "param", None),
        (errors.UnknownAlias("x", ("y",)), "param", "model"),
        (errors.Unavailable("x", reason="loading", retry_after_s=1), "reason", "loading"),
        (errors.UpstreamTimeout("x", upstream="u", limit="idle_s"), "timeout", "idle_s"),
    ],
)
def test_what_a_program_may_act_on_stands_in_a_field_of_its_own(
    error: errors.RoleMeshError, name: str, value: Any
) -> None:
    assert error_object(error, ID)["error"][name] == value


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (errors.MethodNotAllowed("x", ("GET", "POST")), "Allow", "GET, POST"),
        (errors.NotAuthenticated("x"), "WWW-Authenticate", 'Bearer realm="rolemesh"'),
    ],
)
def test_http_wants_a_header_with_some_errors(
    error: errors.RoleMeshError, name: str, value: str
) -> None:
    assert dict(error_reply(error, ID).fields)[name] == value


def test_an_error_may_repeat_what_utf_8_cannot_say() -> None:
    """A lone surrogate in `model` made the error about it fail, and with it the gateway."""
    error = errors.UnknownAlias("\ud800\u00e9", ())
    for body in (error_reply(error, ID).body, json_reply({"x": "\ud800\u00e9"}).body):
        assert b"\\ud800\\u00e9" in body


def test_an_error_event_ends_an_event_that_broke_off() -> None:
    event = error_event(errors.UpstreamBroke("multi\nline", upstream="u"), ID)
    assert event.startswith(b"\n\ndata: {")
    assert event.endswith(b"}\n\n")
    data = event.strip().removeprefix(b"data: ")
    assert b"\n" not in data
    assert json.loads(data)["error"]["status"] == 502


ANTHROPIC_TYPES: list[tuple[errors.RoleMeshError, str]] = [
    (errors.BadRequest("x"), "invalid_request_error"),
    (errors.NotAuthenticated("x"), "authentication_error"),
    (errors.NotAllowed("x"), "permission_error"),
    (errors.UnknownAlias("x", ()), "not_found_error"),
    (errors.MethodNotAllowed("x", ("POST",)), "invalid_request_error"),
    (errors.BodyTooLarge(1), "request_too_large"),
    (errors.QueueFull("x", retry_after_s=1), "rate_limit_error"),
    (errors.RateLimited("x", retry_after_s=1), "rate_limit_error"),
    (errors.Unavailable("x", reason="r", retry_after_s=1), "overloaded_error"),
    (errors.SlotsBusy("x", retry_after_s=1), "overloaded_error"),
    (errors.ConnectFailed("x", upstream="u"), "api_error"),
    (errors.UpstreamTimeout("x", upstream="u", limit="idle_s"), "timeout_error"),
    (errors.RoleMeshError("x"), "api_error"),
]


@pytest.mark.parametrize(("error", "kind"), ANTHROPIC_TYPES)
def test_who_speaks_anthropic_s_api_is_told_in_its_shape(
    error: errors.RoleMeshError, kind: str
) -> None:
    tree = json.loads(error_reply(error, ID, dialect=Dialect.ANTHROPIC).body)
    in_openai_s = json.loads(error_reply(error, ID).body)["error"]
    assert (tree["type"], tree["request_id"]) == ("error", ID)
    assert tree["error"] == {**in_openai_s, "type": kind}
    assert error_reply(error, ID).fields == error_reply(error, ID, Dialect.ANTHROPIC).fields


def test_an_error_event_of_anthropic_s_api_has_its_name() -> None:
    event = error_event(errors.UpstreamBroke("x", upstream="u"), ID, dialect=Dialect.ANTHROPIC)
    assert event.startswith(b"\n\nevent: error\ndata: {")
    assert event.endswith(b"}\n\n")
    assert json.loads(event.split(b"data: ")[1])["type"] == "error"
