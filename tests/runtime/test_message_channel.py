"""Messages between two processes, here the two ends in one."""

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from rolemesh.runtime.message_channel import MessageChannel


@pytest.fixture
def ends() -> Iterator[tuple[MessageChannel, MessageChannel]]:
    one, raw = MessageChannel.pair()
    other = MessageChannel(raw)
    yield one, other
    one.close()
    other.close()


Ends = tuple[MessageChannel, MessageChannel]


async def test_messages_arrive_whole_and_in_order(ends: Ends) -> None:
    ends[0].send("first", text="ä" * 1000)
    ends[0].send("second")
    first, second = await ends[1].receive(), await ends[1].receive()
    assert first is not None
    assert second is not None
    assert (first.say, first.fields, first.fds) == ("first", {"text": "ä" * 1000}, ())
    assert (second.say, second.fields) == ("second", {})


async def test_who_waits_is_woken(ends: Ends) -> None:
    async with asyncio.TaskGroup() as group:
        waits = group.create_task(ends[1].receive())
        await asyncio.sleep(0)
        ends[0].send("now")
    message = waits.result()
    assert message is not None
    assert message.say == "now"


async def test_a_wait_that_is_given_up_takes_nothing_away(ends: Ends) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await ends[1].receive()
    ends[0].send("later")
    message = await ends[1].receive()
    assert message is not None
    assert message.say == "later"


async def test_descriptors_travel_and_are_given_to_nobody_else(ends: Ends) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends[0].send("take", [listener.fileno()])
        message = await ends[1].receive()
        assert message is not None
        (fd,) = message.fds
        assert not os.get_inheritable(fd)
        with socket.socket(fileno=fd) as arrived:
            assert arrived.getsockname() == listener.getsockname()


async def test_an_end_that_is_closed_is_the_end(ends: Ends) -> None:
    ends[0].send("last")
    ends[0].close()
    message = await ends[1].receive()
    assert message is not None
    assert message.say == "last"
    assert await ends[1].receive() is None
    ends[1].send("nobody hears this")


def test_a_process_without_an_event_loop_can_wait_for_a_while(ends: Ends) -> None:
    with pytest.raises(TimeoutError):
        ends[1].receive_now(0.01)
    ends[0].send("now")
    message = ends[1].receive_now(1)
    assert message is not None
    assert message.say == "now"


@pytest.mark.parametrize("data", [b"{", b"[]", b"{}", b"1", b"\xff"])
async def test_what_makes_no_sense_ends_it(data: bytes) -> None:
    one, raw = MessageChannel.pair()
    with raw:
        raw.send(data)
        assert await one.receive() is None
    one.close()
