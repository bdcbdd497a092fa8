"""Reading responses without sockets: where a body ends, and what is no proper response."""

import pytest

from rolemesh.relay.response import MAX_HEAD_BYTES, Framing, ResponseError, ResponseReader


def head(*lines: bytes, start: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"".join(line + b"\r\n" for line in (start, *lines)) + b"\r\n"


def read(data: bytes, size: int = 1 << 20) -> tuple[ResponseReader, bytes]:
    """Feed pieces of `size` until the response is complete; returns the raw body, too."""
    reader, raw = ResponseReader(), b""
    for at in range(0, len(data), size):
        raw += reader.feed(data[at : at + size])
        if reader.complete:
            break
    return reader, raw


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
        reader, passed = read(data, size)
        assert reader.complete, size
        assert (reader.framing, passed, reader.take_decoded()) == (framing, raw, decoded), size
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
    reader, raw = read(LENGTH + b"HTTP/1.1 200 OK\r\n")
    assert (raw, reader.take_decoded(), reader.complete) == (b"hello", b"hello", True)
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
    assert (reader.status, raw) == (200, b"hello")


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
    assert reader.field(b"x-a") == b"1, 2"
    assert reader.field(b"x-b") == b""


def test_trailers_are_not_taken_for_headers() -> None:
    reader, _ = read(head(b"Transfer-Encoding: chunked") + b"0\r\nX-A: 1\r\n\r\n")
    assert reader.field(b"x-a") == b""


def test_body_bytes_gather_only_while_they_are_wanted() -> None:
    reader = ResponseReader()
    reader.feed(head(b"Transfer-Encoding: chunked") + b"1\r\na\r\n")
    reader.collect = False
    reader.feed(b"1\r\nb\r\n")
    assert reader.take_decoded() == b"a"
    assert reader.take_decoded() == b""
