"""The side of the process that takes over; the other one is played here."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rolemesh import __version__
from rolemesh.errors import StartError
from rolemesh.runtime.handover import VARIABLE
from rolemesh.runtime.message_channel import Message, MessageChannel
from rolemesh.runtime.predecessor import Predecessor, Told
from tests.lab.processes import run_to_end

ROOT = Path(__file__).parents[2]

TAKE = f"""
import json, os, sys
from rolemesh.runtime.predecessor import Predecessor
found = Predecessor.found(os.environ)
print(json.dumps([[each.name, each.socket.getsockname()] for each in found.sockets]))
print(json.dumps({{name: os.fstat(fd).st_ino for name, fd in found.locks.items()}}))
assert {VARIABLE!r} not in os.environ
"""


@dataclass(frozen=True)
class Pair:
    """Both ends of a channel: of the old process, and of the new one."""

    old: MessageChannel
    new: MessageChannel


@pytest.fixture
def ends() -> Iterator[Pair]:
    old, raw = MessageChannel.pair()
    pair = Pair(old, MessageChannel(raw))
    yield pair
    pair.old.close()
    pair.new.close()


async def test_sockets_and_output_are_taken_over(tmp_path: Path) -> None:
    channel, theirs = MessageChannel.pair()
    output = tmp_path / "output"
    with socket.create_server(("127.0.0.1", 0)) as listener, theirs, output.open("wb") as file:
        fds = [file.fileno(), 2, listener.fileno(), file.fileno()]
        channel.send("inherit", fds, names=["http-a"], locks=["lock"])
        finished = await run_to_end(
            [sys.executable, "-c", TAKE],
            environment={"PYTHONPATH": str(ROOT), VARIABLE: str(theirs.fileno())},
            pass_fds=(theirs.fileno(),),
        )
        assert (finished.status, finished.stdout) == (0, ""), finished.stderr
        sockets, locks = map(json.loads, output.read_text().splitlines())
        assert sockets == [["http-a", list(listener.getsockname())]]
        assert locks == {"lock": os.fstat(file.fileno()).st_ino}
    channel.close()


@pytest.mark.parametrize("value", ["", "none"])
def test_without_the_variable_nobody_is_there(value: str) -> None:
    assert Predecessor.found({VARIABLE: value}) is None
    assert Predecessor.found({}) is None


def test_who_leaves_nothing_is_no_predecessor() -> None:
    channel, theirs = MessageChannel.pair()
    channel.close()
    with pytest.raises(StartError, match="nothing to take over"):
        Predecessor.found({VARIABLE: str(theirs.detach())})
    with Path(os.devnull).open() as file, pytest.raises(StartError, match="nobody is there"):
        Predecessor.found({VARIABLE: str(file.fileno())})


async def heard(channel: MessageChannel) -> Message:
    message = await channel.receive()
    assert message is not None
    return message


async def test_it_waits_for_its_turn_and_learns_what_is_under_way(ends: Pair) -> None:
    old, own = ends.old, Predecessor(ends.new)
    told: list[Told] = []
    own.on_told = told.append
    async with asyncio.TaskGroup() as group:
        prepared = group.create_task(own.prepared())
        assert (await heard(old)).say == "prepared"
        assert not prepared.done()
        old.send("told", told={"a": 1})
        old.send("proceed", told={"a": 2})
    async with asyncio.TaskGroup() as group:
        group.create_task(own.accepting())
        said = await heard(old)
        assert (said.say, said.fields) == ("accepting", {"version": __version__})
        old.send("told", told={"a": 3})
        old.send("yours")
    assert told == [{"a": 1}, {"a": 2}, {"a": 3}]
    old.send("told", told={"a": 4})
    old.send("something of a later version")
    old.close()
    async with asyncio.timeout(5):
        await own.watch()
    assert told[3:] == [{"a": 4}, {}]
    assert own.is_gone


async def test_a_reload_is_over_when_it_is_followed_there(ends: Pair) -> None:
    old, own = ends.old, Predecessor(ends.new)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(own.watch())
        reloading = group.create_task(own.reload())
        assert (await heard(old)).say == "reload"
        assert not reloading.done()
        old.send("reloaded")
        await reloading
        old.close()
        await watching
    await own.reload()  # nobody is there any more


async def test_it_is_told_how_long_it_has(ends: Pair) -> None:
    old, own = ends.old, Predecessor(ends.new)
    own.stop(3.0)
    said = await heard(old)
    assert (said.say, said.fields) == ("stop", {"within_s": 3.0})


async def test_it_learns_why_nobody_takes_over(ends: Pair) -> None:
    old, own = ends.old, Predecessor(ends.new)
    own.refused(StartError("the port is taken"))
    said = await heard(old)
    assert (said.say, said.fields) == ("refused", {"reason": "the port is taken"})


async def test_an_old_process_that_goes_on_alone_is_no_reason_to_wait(ends: Pair) -> None:
    old, own = ends.old, Predecessor(ends.new)
    old.close()
    with pytest.raises(StartError, match="has gone on without this one"):
        await own.prepared()
