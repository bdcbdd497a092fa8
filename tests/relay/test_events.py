import pytest

from rolemesh.relay.events import EventLines, has_error


def took_content(lines: EventLines, piece: bytes) -> bool:
    """Give it a piece; tell whether that held content."""
    lines.has_content = False
    lines.take(piece)
    return lines.has_content


@pytest.mark.parametrize(
    ("pieces", "content"),
    [
        ([b": ping\n\n"], [False]),
        ([b"\n", b"\r\n", b"\r"], [False, False, False]),
        ([b""], [False]),
        ([b": pi", b"ng\n", b"\n"], [False, False, False]),
        ([b":", b"data: no\n"], [False, False]),
        ([b": ping\n\ndata: x\n\n"], [True]),
        ([b"data: x\n\n", b": ping\n\n"], [True, False]),
        ([b"da", b"ta: x", b"\n\n", b": ping\n"], [True, True, True, False]),
        ([b"data: x\r", b"\n\r\n", b": a\r\n\r\n"], [True, False, False]),
        ([b"event: x\n"], [True]),
        ([b" : indented\n"], [True]),
        ([b": a\n: b\n\n: c\n\n"], [False]),
        ([b"\x00"], [True]),
    ],
)
def test_only_lines_that_are_no_comments_count(pieces: list[bytes], content: list[bool]) -> None:
    lines = EventLines()
    assert [took_content(lines, piece) for piece in pieces] == content


def test_comments_are_recognised_wherever_the_stream_is_cut() -> None:
    comments = b": ping\n\n:\r\n\r\n: a: b data: c\r\r"
    for size in range(1, len(comments) + 1):
        lines = EventLines()
        pieces = [comments[at : at + size] for at in range(0, len(comments), size)]
        assert [piece for piece in pieces if took_content(lines, piece)] == []
        assert took_content(lines, b"d")


@pytest.mark.parametrize(
    ("data", "is_error"),
    [
        (b'\n\ndata: {"error": {"message": "x", "request_id": "r"}}\n\n', True),
        (b'2f\r\n\n\ndata: {"error": {"message": "x", "request_id": "r"}}\n\n\r\n', True),
        (b'\n\nevent: error\ndata: {"type": "error", "error": {"request_id": "r"}}\n\n', True),
        (b'data: {"choices": [{"delta": {"content": "\\"error\\": {"}}]}\n\n', False),
        (b'data: {"error": {"message": "the upstream\'s own"}}\n\n', False),
        (b'data: {"error": {"message": "x", "request_id": ', False),
        (b"", False),
    ],
)
def test_an_error_of_rolemesh_is_known_from_anything_else(data: bytes, *, is_error: bool) -> None:
    assert has_error(data) is is_error
