import pytest

from rolemesh.relay.headers import encode_fields, end_to_end, status_line


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (200, b"HTTP/1.1 200 OK\r\n"),
        (404, b"HTTP/1.1 404 Not Found\r\n"),
        (599, b"HTTP/1.1 599 \r\n"),
    ],
)
def test_a_status_line_has_its_phrase_or_none(status: int, line: bytes) -> None:
    assert status_line(status) == line


def test_header_lines_are_encoded_one_after_another() -> None:
    assert encode_fields((("A", "1"), ("B", "\u00e9"))) == b"A: 1\r\nB: \xe9\r\n"
    assert encode_fields((("A", "\u2192\udcff"),)) == b"A: ??\r\n"
    assert encode_fields(()) == b""


@pytest.mark.parametrize("text", ["a\r\nB: b", "a\nb", "a\rb", "\r\n"])
def test_no_header_can_bring_another_line_with_it(text: str) -> None:
    for field in (("A", text), (text, "a")):
        with pytest.raises(ValueError, match="line break"):
            encode_fields((field,))


def test_headers_of_one_hop_and_those_named_in_connection_do_not_cross_it() -> None:
    fields = [
        (b"content-type", b"text/plain"),
        (b"connection", b"Keep-Alive, X-Own"),
        (b"x-own", b"1"),
        (b"keep-alive", b"timeout=5"),
        (b"transfer-encoding", b"chunked"),
        (b"content-length", b"5"),
        (b"server", b"llama.cpp"),
        (b"set-cookie", b"a=b"),
        (b"strict-transport-security", b"max-age=1"),
        (b"access-control-allow-origin", b"*"),
        (b"x-other", b"2"),
        (b"x-other", b"3"),
    ]
    passed = b"content-type: text/plain\r\nx-other: 2\r\nx-other: 3\r\n"
    assert end_to_end(fields) == passed
