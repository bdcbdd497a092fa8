from rolemesh.config.settings import Priority
from rolemesh.gateway.queue_order import AGE_S, OUT_OF_TURN, FairShares, goes_first, place

INTERACTIVE, DEFAULT, BATCH = Priority


class Queue:
    """Requests that wait; `order` is in which order they are served, all at one time."""

    def __init__(self) -> None:
        self.shares = FairShares()
        self._waiting: list[tuple[str, Priority, float, float]] = []

    def enter(
        self,
        name: str,
        client: str = "-",
        *,
        cost: int = 1,
        at: float = 0.0,
        of: Priority = DEFAULT,
    ) -> None:
        self._waiting.append((name, of, self.shares.tag(client, cost), at))

    def order(self) -> list[str]:
        places = sorted(
            (place(of, tag, arrived_at), name) for name, of, tag, arrived_at in self._waiting
        )
        return [name for _, name in places]


def test_a_higher_class_is_served_first_and_within_one_who_came_first() -> None:
    queue = Queue()
    queue.enter("b1", of=BATCH, at=0)
    queue.enter("d1", of=DEFAULT, at=1)
    queue.enter("b2", of=BATCH, at=2)
    queue.enter("i1", of=INTERACTIVE, at=3)
    queue.enter("i2", of=INTERACTIVE, at=4)
    assert queue.order() == ["i1", "i2", "d1", "b1", "b2"]


def test_one_slot_in_so_many_goes_to_who_has_waited_longest_once_that_is_long() -> None:
    turns = [goes_first(AGE_S, served) for served in range(2 * OUT_OF_TURN)]
    assert turns == ([False] * (OUT_OF_TURN - 1) + [True]) * 2
    assert not any(goes_first(AGE_S - 0.1, served) for served in range(2 * OUT_OF_TURN))


def test_keys_take_turns_however_much_each_asks_for() -> None:
    queue = Queue()
    for number in range(4):
        queue.enter(f"many{number}", "many", at=float(number))
    queue.enter("few0", "few", at=5.0)
    queue.enter("few1", "few", at=6.0)
    expected = ["many0", "few0", "many1", "few1", "many2", "many3"]
    assert queue.order() == expected


def test_who_asks_for_more_slots_at_once_waits_longer_for_the_next_turn() -> None:
    queue = Queue()
    for number in range(2):
        queue.enter(f"large{number}", "large", cost=3, at=0.0)
    for number in range(4):
        queue.enter(f"small{number}", "small", at=1.0)
    expected = ["large0", "small0", "small1", "small2", "large1", "small3"]
    assert queue.order() == expected


def test_a_key_that_comes_late_does_not_have_the_past_to_its_credit() -> None:
    """Its first turn is now, not one for each that the others have had before."""
    shares = FairShares()
    for _ in range(10):
        shares.served(shares.tag("old", 1))
    next_of_old = shares.tag("old", 1)
    assert shares.tag("new", 1) == next_of_old - 1
    assert shares.tag("new", 1) == next_of_old


def test_what_costs_no_slot_still_counts_as_a_turn() -> None:
    shares = FairShares()
    assert [shares.tag("free", 0) for _ in range(3)] == [0.0, 1.0, 2.0]


def test_an_empty_queue_forgets_who_had_what() -> None:
    shares = FairShares()
    for _ in range(5):
        shares.served(shares.tag("busy", 1))
    shares.forget()
    assert shares.tag("busy", 1) == shares.tag("other", 1) == 0.0


def test_what_is_served_elsewhere_moves_nobody_to_the_end_of_a_queue() -> None:
    """Virtual time may be far ahead of a queue that stands still."""
    shares = FairShares()
    standing = [shares.tag("many", 1) for _ in range(3)]
    for _ in range(10):
        shares.served(shares.tag("elsewhere", 1))
    assert shares.tag("few", 1, standing) == standing[0]
    assert shares.begun(standing) == standing[0]
    assert shares.begun([]) == 9.0
