"""Reading requests without sockets: tables of what is taken and what is refused."""

import tracemalloc

import pytest

from rolemesh.errors import BadRequest, BodyTooLarge, HeadTooLarge, MethodNotAllowed
from rolemesh.relay.request import BodyReader, Request, read_head

MAX_HEAD = 400
MAX_BODY = 20


def head(*lines: bytes, start: bytes = b"POST /v1/completions HTTP/1.1") -> bytes:
    return b"".join(line + b"\r\n" for line in (start, b"Host: h", *lines)) + b"\r\n"


def read(data: bytes, size: int = 1 << 20) -> tuple[bytes, bool, bytes]:
    """Read one request given in pieces of `size`; returns body, keep-alive and what is left."""
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    buffer, request, reader = b"", None, None
    while pieces:
        buffer += pieces.pop(0)
        if request is None or reader is None:
            request = read_head(buffer, MAX_HEAD)
            if request is None:
                continue
            reader = BodyReader(request, MAX_BODY)
            buffer = buffer[request.size :]
        buffer = reader.feed(buffer)
        if reader.complete:
            keep_alive = request.head.keep_alive and not reader.pipelined
            return reader.body, keep_alive, buffer + b"".join(pieces)
    raise AssertionError("the request is not whole")


def found(data: bytes) -> Request:
    """Return the request whose head this is."""
    request = read_head(data, MAX_HEAD)
    assert request is not None
    return request


WHOLE = [
    (head(), b"", True),
    (head(b"Content-Length: 0"), b"", True),
    (head(b"Content-Length: 5") + b"hello", b"hello", True),
    (head(b"content-length:5 ") + b"hello", b"hello", True),
    (head(b"Content-Length: 5", b"Connection: close") + b"hello", b"hello", False),
    (head(b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n", b"hello", True),
    (head(b"Transfer-Encoding: Chunked") + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello", True),
    (head(b"Transfer-Encoding: chunked") + b"5;a=b\r\nhello\r\n0;c\r\n\r\n", b"hello", True),
    (head(b"Transfer-Encoding: chunked") + b"0\r\nX-Api-Key: a\r\n\r\n", b"", True),
    (head(b"Transfer-Encoding: chunked") + b"0\r\n\r\n", b"", True),
    (head(b"Content-Length: 5", start=b"POST /x HTTP/1.0") + b"hello", b"hello", False),
    (
        head(b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"Content-Length: 5")
        + b"hello",
        b"hello",
        True,
    ),
]


@pytest.mark.parametrize(("data", "body", "keep_alive"), WHOLE)
def test_a_request_is_the_same_wherever_it_is_cut(
    data: bytes, body: bytes, keep_alive: bool
) -> None:
    for size in range(1, len(data) + 1):
        assert read(data, size) == (body, keep_alive, b""), size


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        (b"Content-Length: 5", b"Content-Length: 6"),
        (b"Content-Length: 5", b"Content-Length: 5"),
        (b"Content-Length: 5, 5",),
        (b"Content-Length: +5",),
        (b"Content-Length: -5",),
        (b"Content-Length: 0x5",),
        (b"Content-Length: 5 5",),
        (b"Content-Length:",),
        (b"Content-Length: " + b"9" * 40,),
        (b"Transfer-Encoding: gzip",),
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Transfer-Encoding: chunked, chunked",),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: xchunked",),
        (b"Transfer-Encoding : chunked",),
        (b"Content-Length : 5",),
        (b" Content-Length: 5",),
        (b"X: a", b" folded"),
        (b"X: a", b"\tfolded"),
        (b"X: a\nContent-Length: 5",),
        (b"X: a\rContent-Length: 5",),
        (b"X: a\x00b",),
        (b"X\x00: a",),
        (b"X: a\x7f",),
        (b"no colon",),
        (b": no name",),
        (b"X y: a",),
        (b"Host: a", b"Host: b"),
        (b"Authorization: Bearer a", b"authorization: Bearer b"),
        (b"X-Api-Key: a", b"X-Api-Key: b"),
    ],
)
def test_a_head_that_another_hop_might_read_differently_is_refused(lines: tuple[bytes]) -> None:
    with pytest.raises(BadRequest):
        read(head(*lines) + b"hello")


@pytest.mark.parametrize(
    "start",
    [
        b"POST /x HTTP/2.0",
        b"POST /x HTTP/1.2",
        b"POST /x HTTP/1.1 ",
        b"POST  /x HTTP/1.1",
        b"POST /x y HTTP/1.1",
        b"POST /x\x00 HTTP/1.1",
        b"POST /\xc3\xa9 HTTP/1.1",
        b"POST /x",
        b"\x16\x03\x01\x02\x00\x01",
        b"P\x00ST /x HTTP/1.1",
    ],
)
def test_a_start_line_that_is_none_is_refused(start: bytes) -> None:
    with pytest.raises(BadRequest):
        read_head(head(start=start), MAX_HEAD)


@pytest.mark.parametrize("data", [b"POST / HTTP/1.1\n", b"\x16\x03\x01", b" POST", b"X: a\nY"])
def test_a_head_is_refused_as_soon_as_it_cannot_become_right(data: bytes) -> None:
    with pytest.raises(BadRequest):
        read_head(data, MAX_HEAD)


@pytest.mark.parametrize("method", [b"TRACE", b"CONNECT", b"get", b"PRI", b"X" * 300])
def test_a_method_that_no_path_takes_is_refused(method: bytes) -> None:
    with pytest.raises(MethodNotAllowed) as refused:
        read_head(head(start=method + b" / HTTP/1.1"), MAX_HEAD)
    assert refused.value.allowed[:2] == ("DELETE", "GET")
    assert len(str(refused.value)) < 80


def test_http_1_1_has_to_name_its_host() -> None:
    line = b"POST %b HTTP/1.%d\r\nAccept: a\r\n\r\n"
    with pytest.raises(BadRequest, match="Host"):
        read_head(line % (b"/x", 1), MAX_HEAD)
    assert found(line % (b"/x", 0)).field("host") is None
    assert found(line % (b"http://a:1/x", 1)).field("host") == "a:1"
    named_twice = head(start=b"POST http://evil.example/x HTTP/1.1")
    assert found(named_twice).field("host") == "evil.example"


def test_chunked_with_http_1_0_is_refused() -> None:
    with pytest.raises(BadRequest, match="framing"):
        read(head(b"Transfer-Encoding: chunked", start=b"POST /x HTTP/1.0") + b"0\r\n\r\n")


@pytest.mark.parametrize(
    "body", [b"x\r\n", b"-1\r\n", b"5\r\nhelloX", b"5\r\nhello\r\nzz", b"\r\n"]
)
def test_bad_chunks_are_refused(body: bytes) -> None:
    with pytest.raises((BadRequest, AssertionError)) as refused:
        read(head(b"Transfer-Encoding: chunked") + body + b"\r\n0\r\n\r\n")
    assert refused.type is BadRequest


def test_a_head_that_is_too_large_is_refused_whole_or_not() -> None:
    just_fits = head(b"X: " + b"a" * (MAX_HEAD - len(head(b"X: "))))
    assert read_head(just_fits, MAX_HEAD) is not None
    for data in (just_fits.replace(b"X: ", b"XX: "), b"POST /" + b"a" * MAX_HEAD):
        with pytest.raises(HeadTooLarge):
            read_head(data, MAX_HEAD)


@pytest.mark.parametrize(
    "data",
    [
        head(b"Transfer-Encoding: chunked") + b"15\r\n" + b"a" * 21,
        head(b"Transfer-Encoding: chunked") + b"1\r\na\r\n" * 21,
    ],
)
def test_a_body_that_is_too_large_is_refused_before_its_end(data: bytes) -> None:
    for size in (len(data), 1):
        with pytest.raises(BodyTooLarge):
            read(data, size)


def test_what_follows_a_counted_body_is_left_for_the_next_request() -> None:
    data = head(b"Content-Length: 5") + b"hello"
    assert read(data + b"POST /next") == (b"hello", True, b"POST /next")


@pytest.mark.parametrize("rest", [b"POST /next HTTP/1.1\r\n", b"\x00garbage"])
def test_what_follows_a_chunked_body_in_one_packet_closes_the_connection(rest: bytes) -> None:
    data = head(b"Transfer-Encoding: chunked") + b"2\r\nhi\r\n0\r\n\r\n" + rest
    body, keep_alive, _ = read(data)
    assert (body, keep_alive) == (b"hi", False)


def test_trailers_are_not_taken_for_headers() -> None:
    request = found(head(b"Transfer-Encoding: chunked", b"X: a"))
    reader = BodyReader(request, MAX_BODY)
    reader.feed(b"0\r\nAuthorization: Bearer b\r\nX: c\r\n\r\n")
    assert reader.complete
    assert request.head.fields == {
        "host": "h",
        "transfer-encoding": "chunked",
        "x": "a",
    }


def test_headers_that_may_repeat_are_joined() -> None:
    assert found(head(b"Accept: a", b"ACCEPT:  b ")).head.fields == {
        "accept": "a, b",
        "host": "h",
    }


def test_lengths_and_ids_are_read_however_they_are_spelt_and_are_no_fields_else() -> None:
    for name, id_name in (
        (b"Content-Length", b"X-Request-Id"),
        (b"CONTENT-LENGTH", b"x-request-id"),
    ):
        request = found(head(b"X: a", name + b":\t5 ", id_name + b": one"))
        assert (request.length, request.wanted_id) == (5, b"one")
        assert request.field("x") == "a"
    other = found(head(b"X: a", b"Content-Length: 6", b"X-Request-Id: two"))
    assert (other.length, other.wanted_id) == (6, b"two")


def test_of_two_ids_none_is_taken() -> None:
    assert found(head(b"X-Request-Id: one", b"x-request-id: two")).wanted_id == b""


@pytest.mark.parametrize(
    ("lines", "start", "expects"),
    [
        ((b"Expect: 100-Continue", b"Content-Length: 5"), b"POST /x HTTP/1.1", True),
        ((b"Expect: 100-continue", b"Content-Length: 5"), b"POST /x HTTP/1.0", False),
        ((b"Content-Length: 5",), b"POST /x HTTP/1.1", False),
    ],
)
def test_a_client_may_wait_for_leave_to_send_its_body(
    lines: tuple[bytes, ...], start: bytes, expects: bool
) -> None:
    assert found(head(*lines, start=start)).head.expects_continue is expects


def test_the_query_is_no_part_of_the_path() -> None:
    line = found(head(start=b"POST //v1/completions/?a=/b HTTP/1.1")).head
    assert (line.method, line.path, line.query) == ("POST", "/v1/completions", "a=/b")
    assert line.minor == 1


def test_a_body_in_tiny_chunks_takes_no_more_memory_than_its_size() -> None:
    size = 1 << 20
    reader = BodyReader(found(head(b"Transfer-Encoding: chunked")), size)
    tracemalloc.start()
    for _ in range(16):
        reader.feed(b"2\r\nab\r\n" * (size // 32))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    reader.feed(b"0\r\n\r\n")
    assert reader.body == b"ab" * (size // 2)
    assert used < 3 * size
