"""What is written when, in which order, and what is dropped."""

import asyncio
from collections.abc import Iterable

import pytest

from rolemesh.relay.members import Buffer
from rolemesh.relay.outbox import FEW, LARGE_BYTES, Outbox


class Written(asyncio.Transport):
    """A transport that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[bytes]] = []
        self.closing = False

    def write(self, data: Buffer) -> None:  # type: ignore[override]
        self.calls.append([bytes(data)])

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:  # type: ignore[override]
        self.calls.append([bytes(data) for data in list_of_data])

    def is_closing(self) -> bool:
        return self.closing


def outbox(under_way: int) -> Outbox:
    return Outbox(asyncio.get_running_loop(), range(under_way))


async def test_with_few_requests_under_way_all_is_written_at_once() -> None:
    transport = Written()
    outbox(FEW).write(transport, b"a")
    assert transport.calls == [[b"a"]]


async def test_with_many_all_is_written_together_at_the_end_of_the_round_and_in_order() -> None:
    box, first, second = outbox(FEW + 1), Written(), Written()
    for transport, data in ((first, b"1"), (second, b"2"), (first, b"3")):
        box.write(transport, data)
    assert first.calls == second.calls == []
    await asyncio.sleep(0)
    assert (first.calls, second.calls) == ([[b"1"], [b"3"]], [[b"2"]])


async def test_nothing_overtakes_what_waits() -> None:
    under_way = [1] * (FEW + 1)
    box, transport = Outbox(asyncio.get_running_loop(), under_way), Written()
    box.write(transport, b"1")
    under_way.clear()
    box.write(transport, b"2")
    box.flush()
    assert transport.calls == [[b"1"], [b"2"]]


async def test_what_is_for_a_closed_transport_is_dropped_and_keeps_nobody_from_the_rest() -> None:
    box, closed, other = outbox(FEW + 1), Written(), Written()
    box.write(closed, b"1")
    box.write(other, b"2")
    closed.closing = True
    box.flush()
    assert (closed.calls, other.calls) == ([], [[b"2"]])


@pytest.mark.parametrize(("size", "buffers"), [(0, 1), (LARGE_BYTES - 1, 1), (LARGE_BYTES, 2)])
async def test_only_a_large_body_is_a_buffer_of_its_own(size: int, buffers: int) -> None:
    transport = Written()
    outbox(0).write_request(transport, b"head", memoryview(b"x" * size))
    (call,) = transport.calls
    assert len(call) == buffers
    assert b"".join(call) == b"head" + b"x" * size
