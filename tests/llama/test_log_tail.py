"""Lines out of a byte stream."""

from rolemesh.llama.log_tail import KEPT_LINES, MAX_LINE_BYTES, LogTail


def tail_of(text: str) -> LogTail:
    tail = LogTail()
    tail.feed(text.encode())
    tail.end()
    return tail


def test_lines_are_passed_on_whole_and_unchanged() -> None:
    tail = LogTail()
    assert tail.feed(b"one\ntw") == b"one\n"
    assert tail.feed(b"o\xff\n\nthree") == b"two\xff\n\n"
    assert tail.end() == b"three\n"
    assert tail.end() == b""
    assert tail.lines() == ("one", "two\N{REPLACEMENT CHARACTER}", "", "three")


def test_only_the_last_lines_are_kept_but_all_are_counted() -> None:
    tail = tail_of("".join(f"{number}\n" for number in range(KEPT_LINES * 3)))
    assert len(tail.lines()) == KEPT_LINES
    assert tail.lines()[-1] == str(KEPT_LINES * 3 - 1)
    assert tail.line_count == KEPT_LINES * 3


def test_lines_about_our_own_checks_are_kept_but_not_counted() -> None:
    tail = tail_of('loading\nrequest: "GET /health HTTP/1.1" 503\nrequest: GET /slots\n')
    assert (len(tail.lines()), tail.line_count) == (3, 1)


def test_what_is_forgotten_is_counted_all_the_same() -> None:
    tail = tail_of("one\ntwo\n")
    tail.forget()
    assert (tail.lines(), tail.line_count) == ((), 2)


def test_a_line_without_an_end_does_not_grow_without_bound() -> None:
    tail = LogTail()
    passed = tail.feed(b"x" * (3 * MAX_LINE_BYTES + 1))
    assert len(passed) == 3 * (MAX_LINE_BYTES + 1)
    assert {len(line) for line in tail.lines()} == {1024}


def test_each_line_is_passed_on_after_the_prefix() -> None:
    tail = LogTail("gpu0: ")

    assert tail.feed(b"one\ntw") == b"gpu0: one\n"
    assert tail.feed(b"o\n") == b"gpu0: two\n"
    assert tail.lines() == ("one", "two")
