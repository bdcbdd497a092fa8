"""Reading responses without sockets: where a body ends, and what is no proper response."""

import pytest

from rolemesh.relay.response import (
    MAX_HEAD_BYTES,
    Framing,
    ResponseError,
    ResponseReader,
    read_whole,
)


def head(*lines: bytes, start: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"".join(line + b"\r\n" for line in (start, *lines)) + b"\r\n"


def read(data: bytes, size: int = 1 << 20) -> tuple[ResponseReader, bytes]:
    """Feed pieces of `size` until the response is complete; returns the raw body, too."""
    return read_decoded(data, size)[:2]


def read_decoded(data: bytes, size: int = 1 << 20) -> tuple[ResponseReader, bytes, bytes]:
    """Do as `read` does, and return the decoded body, too."""
    decoded = bytearray()
    reader, raw = ResponseReader(decoded.extend), b""
    for at in range(0, len(data), size):
        raw += reader.feed(data[at : at + size])
        if reader.complete:
            break
    return reader, raw, bytes(decoded)


def field(reader: ResponseReader, name: bytes) -> bytes:
    assert reader.head is not None
    return reader.head.field(name)


LENGTH = head(b"Content-Length: 5") + b"hello"
CHUNKS = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
CHUNKED = head(b"Transfer-Encoding: chunked") + CHUNKS


@pytest.mark.parametrize(
    ("data", "framing", "raw", "decoded"),
    [
        (LENGTH, Framing.LENGTH, b"hello", b"hello"),
        (head(b"Content-Length: 0"), Framing.LENGTH, b"", b""),
        (CHUNKED, Framing.CHUNKED, CHUNKS, b"hello world"),
        (head(b"Transfer-Encoding: CHUNKED") + b"0\r\n\r\n", Framing.CHUNKED, b"0\r\n\r\n", b""),
        (
            head(b"Transfer-Encoding: chunked") + b"1;x=y\r\na\r\n0\r\nT: v\r\n\r\n",
            Framing.CHUNKED,
            b"1;x=y\r\na\r\n0\r\nT: v\r\n\r\n",
            b"a",
        ),
        (head(start=b"HTTP/1.1 204 No Content"), Framing.LENGTH, b"", b""),
        (head(b"Transfer-Encoding: chunked", start=b"HTTP/1.1 204 X"), Framing.LENGTH, b"", b""),
        (head(b"Content-Length: 9", start=b"HTTP/1.1 304 X"), Framing.LENGTH, b"", b""),
        (head(start=b"HTTP/1.1 100 Continue") + LENGTH, Framing.LENGTH, b"hello", b"hello"),
        (
            head(start=b"HTTP/1.1 103 Early") + head(b"X: a", start=b"HTTP/1.1 102 P") + CHUNKED,
            Framing.CHUNKED,
            CHUNKS,
            b"hello world",
        ),
        (
            head(b"Content-Length: 5", start=b"HTTP/1.1 200") + b"hello",
            Framing.LENGTH,
            b"hello",
            b"hello",
        ),
    ],
)
def test_a_response_is_the_same_wherever_it_is_cut(
    data: bytes, framing: Framing, raw: bytes, decoded: bytes
) -> None:
    for size in range(1, len(data) + 1):
        reader, *bodies = read_decoded(data, size)
        assert reader.complete, size
        assert (reader.framing, *bodies) == (framing, raw, decoded), size
        assert reader.reusable, size


def test_without_length_or_chunks_the_end_of_the_connection_ends_the_body() -> None:
    reader, raw = read(head(b"X: a") + b"hel")
    raw += reader.feed(b"lo")
    assert (reader.framing, reader.complete) == (Framing.CLOSE, False)
    reader.end()
    assert (raw, reader.complete, reader.reusable) == (b"hello", True, False)


@pytest.mark.parametrize(
    "data", [b"", b"HTTP/1.1 200", LENGTH[:-1], CHUNKED[:-1], head(start=b"HTTP/1.1 100 Continue")]
)
def test_a_response_that_ends_early_is_broken(data: bytes) -> None:
    reader, _ = read(data)
    with pytest.raises(ResponseError, match="before the response was whole"):
        reader.end()


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        head(start=b"HTTP/2 200 OK"),
        head(start=b"HTTP/1.1 99 OK"),
        head(start=b"HTTP/1.1 600 OK"),
        head(start=b"HTTP/1.1 2000 OK"),
        head(b"X: a\nY: b"),
        head(b"X: a", b" folded"),
        head(b"X : a"),
        head(b"X: a\x00"),
        head(b"no colon"),
        head(start=b"HTTP/1.1 101 Switching"),
        head(b"Content-Length: 5", b"Content-Length: 5"),
        head(b"Content-Length: 5", b"Content-Length: 6"),
        head(b"Content-Length: 5, 6"),
        head(b"Content-Length: -1"),
        head(b"Content-Length: x"),
        head(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        head(b"Transfer-Encoding: gzip"),
        head(b"Transfer-Encoding: gzip, chunked"),
        head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip"),
        head(b"Transfer-Encoding: chunked") + b"zz\r\n",
        head(b"Transfer-Encoding: chunked") + b"1\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * MAX_HEAD_BYTES,
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(data: bytes) -> None:
    with pytest.raises(ResponseError):
        read(data)


def test_what_follows_a_counted_body_is_dropped_and_ends_the_connection() -> None:
    reader, *bodies = read_decoded(LENGTH + b"HTTP/1.1 200 OK\r\n")
    assert (*bodies, reader.complete) == (b"hello", b"hello", True)
    assert not reader.reusable


@pytest.mark.parametrize("rest", [b"HTTP/1.1 200 OK\r\n\r\n", b"\x00garbage"])
def test_what_follows_a_chunked_body_in_one_packet_is_an_error(rest: bytes) -> None:
    with pytest.raises(ResponseError):
        read(CHUNKED + rest)


@pytest.mark.parametrize(
    ("data", "reusable"),
    [
        (head(b"Content-Length: 0", b"Connection: close"), False),
        (head(b"Content-Length: 0", b"Connection: Close, X"), False),
        (head(b"Content-Length: 0", b"Connection: keep-alive", b"Connection: close"), False),
        (head(b"Content-Length: 0", start=b"HTTP/1.0 200 OK"), False),
        (head(b"Content-Length: 0", b"Connection: Keep-Alive", start=b"HTTP/1.0 200 OK"), True),
    ],
)
def test_a_connection_is_kept_only_when_the_upstream_keeps_it(data: bytes, reusable: bool) -> None:
    reader, _ = read(data)
    assert reader.complete
    assert reader.reusable is reusable


def test_informational_responses_are_skipped_however_many_there_are() -> None:
    reader, raw = read(head(start=b"HTTP/1.1 102 Processing") * 5000 + LENGTH)
    assert reader.head is not None
    assert (reader.head.status, raw) == (200, b"hello")


def test_a_chunk_of_our_own_fits_only_between_chunks() -> None:
    reader = ResponseReader()
    pieces = [head(b"Transfer-Encoding: chunked"), b"5\r\nhel", b"lo\r\n", b"5", b"\r\n"]
    fits = []
    for piece in pieces:
        reader.feed(piece)
        fits.append(reader.between_chunks)
    assert fits == [True, False, True, False, False]


def test_headers_are_found_by_lower_case_name_and_joined() -> None:
    reader, _ = read(head(b"X-A: 1", b"x-a:\t2 ", b"Content-Length: 0"))
    assert field(reader, b"x-a") == b"1, 2"
    assert field(reader, b"x-b") == b""


def test_trailers_are_not_taken_for_headers() -> None:
    reader, _ = read(head(b"Transfer-Encoding: chunked") + b"0\r\nX-A: 1\r\n\r\n")
    assert field(reader, b"x-a") == b""


def test_body_bytes_go_to_whoever_wants_them_at_the_time() -> None:
    reader, taken = ResponseReader(), bytearray()
    reader.feed(head(b"Transfer-Encoding: chunked") + b"1\r\na\r\n")
    reader.sink = taken.extend
    reader.feed(b"1\r\nb\r\n")
    assert taken == b"b"


@pytest.mark.parametrize(
    "varying",
    [b"", b"Date: now\r\n", b"X-Request-Id: \x80\r\n", b"X-RoleMesh-Queue-Ms: 1\r\nDate: x\r\n"],
)
def test_heads_that_differ_only_in_length_date_and_id_pass_the_same(varying: bytes) -> None:
    lines = b"HTTP/1.1 200 OK\r\nX-A: 1\r\n%bContent-Length: %d\r\nX-B: 2\r\n\r\n%b"
    for body in (b"", b"a", b"ab"):
        reader, raw = read(lines % (varying, len(body), body))
        assert reader.head is not None
        assert reader.head.passed == b"HTTP/1.1 200 OK\r\nx-a: 1\r\nx-b: 2\r\n"
        assert (raw, reader.complete) == (body, True)


def test_a_plain_response_that_is_there_whole_is_read_at_once() -> None:
    for varying in ((), (b"Date: now",), (b"X-Request-Id: a", b"X-RoleMesh-Queue-Ms: 1")):
        whole = read_whole(head(b"X-A: 1", b"Content-Length: 5", *varying) + b"hello")
        assert whole is not None
        assert (whole[0].status, whole[0].field(b"x-a"), whole[1]) == (200, b"1", b"hello")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        LENGTH[:-1],
        LENGTH + b"x",
        CHUNKED,
        head(b"Content-Length: 5", b"Content-Length: 5") + b"hello",
        head(b"CONTENT-LENGTH: 5", b"Content-Length: 5") + b"hello",
        head(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"hello",
        head(b"Content-Length: 0", start=b"HTTP/1.1 100 Continue"),
        head(b"Content-Length: 0", start=b"HTTP/1.1 204 No Content"),
        head(b"Content-Length: 5", start=b"HTTP/1.1 500 Oops") + b"hello",
        head(b"Content-Length: 5", b"Content-Type: text/event-stream") + b"hello",
        head(b"Content-Length: 5", b"X: " + b"a" * 5000) + b"hello",
    ],
)
def test_all_else_is_left_to_the_reader(data: bytes) -> None:
    assert read_whole(data) is None
