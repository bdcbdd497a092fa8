from rolemesh.gateway.crash_guard import MAX_BODIES, REFUSED_FOR_S, CrashGuard


def test_a_body_that_broke_two_is_refused_and_others_are_not() -> None:
    guard = CrashGuard()
    assert not guard.broke(b"poison", 0.0, 1.0)
    assert not guard.refuses(b"poison", 1.0)
    assert guard.broke(b"poison", 1.5, 2.0)
    assert guard.refuses(b"poison", 2.0)
    assert not guard.refuses(b"harmless", 2.0)


def test_it_is_refused_for_ten_minutes_from_the_last_break_on() -> None:
    guard = CrashGuard()
    guard.broke(b"poison", 0.0, 1.0)
    guard.broke(b"poison", 1.5, 2.0)
    assert guard.refuses(b"poison", 2.0 + REFUSED_FOR_S - 0.1)
    assert not guard.refuses(b"poison", 2.0 + REFUSED_FOR_S)


def test_after_that_it_begins_anew() -> None:
    guard = CrashGuard()
    guard.broke(b"poison", 0.0, 1.0)
    guard.broke(b"poison", 1.5, 2.0)
    later = 2.0 + REFUSED_FOR_S
    assert not guard.broke(b"poison", later, later + 1.0)
    assert guard.broke(b"poison", later + 2.0, later + 3.0)


def test_breaks_far_apart_have_nothing_to_do_with_each_other() -> None:
    guard = CrashGuard()
    guard.broke(b"poison", 0.0, 1.0)
    assert not guard.broke(b"poison", REFUSED_FOR_S, REFUSED_FOR_S + 1.0)


def test_like_requests_that_one_crash_ended_count_once() -> None:
    guard = CrashGuard()
    for second in range(10):
        assert not guard.broke(b"common", float(second), 10.0)
    assert not guard.refuses(b"common", 10.0)
    assert guard.broke(b"common", 10.1, 11.0)


def test_a_large_body_may_be_a_view() -> None:
    guard = CrashGuard()
    body = b"x" * 100
    guard.broke(memoryview(body)[:50], 0.0, 1.0)
    assert guard.broke(body[:50], 1.5, 2.0)


def test_what_is_known_is_bounded_and_the_last_ones_are_kept() -> None:
    guard = CrashGuard()
    assert not guard.known
    for number in range(MAX_BODIES + 1):
        guard.broke(b"%d" % number, 0.0, 1.0)
        guard.broke(b"%d" % number, 1.5, 2.0)
    assert guard.known
    refused = [guard.refuses(b"%d" % number, 2.0) for number in range(MAX_BODIES + 1)]
    assert refused == [False] + [True] * MAX_BODIES
