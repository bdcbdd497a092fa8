"""How a llama-server is watched: when it is asked for its slots, and what comes of the answers."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.llama.activity import SLOTS_LIMIT_BYTES, NotTelling, ServerActivity, gpus_of
from rolemesh.llama.wedge import Slot, WedgeDetector
from rolemesh.llama.wedge_watch import WedgeWatch
from rolemesh.names import InstanceName
from rolemesh.runtime.tasks import TaskScope
from tests.lab.nvml import FakeGpus
from tests.lab.poll import eventually


class Slots:
    """Answers GET /slots; `tokens` is what its one slot shows, None: it is idle.

    While `answers` is clear, nobody gets an answer. `prompt` is what it prints of the prompt.
    """

    def __init__(self) -> None:
        self.tokens: int | None = None
        self.status = 200
        self.prompt = ""
        self.asked = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"GET /slots ")
            self.asked += 1
            await self.answers.wait()
            row: dict[str, Any] = {"id": 0, "is_processing": self.tokens is not None}
            row |= {"n_prompt_tokens_processed": self.tokens or 0, "prompt": self.prompt}
            body = json.dumps([row]).encode()
            writer.write(
                b"HTTP/1.1 %d Whatever\r\nContent-Length: %d\r\n\r\n" % (self.status, len(body))
            )
            writer.write(body)
            await writer.drain()
        writer.close()


@pytest.fixture
async def slots(short_path: Path) -> AsyncIterator[Slots]:
    served = Slots()
    listener = await asyncio.start_unix_server(served.serve, short_path / "http.sock")
    yield served
    served.answers.set()
    listener.close()


@pytest.fixture
def activity(short_path: Path) -> ServerActivity:
    address = UpstreamAddress.unix(str(short_path / "http.sock"))
    return ServerActivity(address=address, pid=os.getpid(), gpus=())


class Log:
    """What a llama-server's log says; `looked_at` counts who wanted to know."""

    def __init__(self) -> None:
        self._begun = 1
        self.looked_at = 0

    def begin(self) -> None:
        self._begun += 1

    def lines_logged(self) -> int:
        self.looked_at += 1
        return self._begun


@contextlib.asynccontextmanager
async def watched(activity: ServerActivity, log: Log) -> AsyncIterator[asyncio.Task[str]]:
    """Watch with a limit of 0.4 s, and a look each 0.1 s."""
    detector = WedgeDetector(wedge_after_s=0.4, batch_tokens=1, first_token_s=0.001)
    watch = WedgeWatch(detector=detector, activity=activity, lines_logged=log.lines_logged)
    async with TaskScope() as scope:
        yield scope.start(watch.wedged(), name="watch")


@contextlib.asynccontextmanager
async def watched_at_work(activity: ServerActivity) -> AsyncIterator[asyncio.Task[str]]:
    """Watch one that has begun something."""
    log = Log()
    async with watched(activity, log) as task:
        log.begin()
        yield task


async def test_an_idle_one_is_asked_only_when_something_has_begun(
    slots: Slots, activity: ServerActivity
) -> None:
    """Not at first either: asking would wake one that sleeps."""
    log = Log()
    async with watched(activity, log):
        for times in range(4):
            await eventually(lambda: slots.asked == times, what="asked")  # noqa: B023
            looked = log.looked_at
            await eventually(lambda: log.looked_at > looked + 3, what="looked again")  # noqa: B023
            assert slots.asked == times
            log.begin()


async def test_a_busy_one_that_does_not_move_is_wedged(
    slots: Slots, activity: ServerActivity
) -> None:
    slots.tokens = 5
    async with watched_at_work(activity) as task:
        assert "(slot 0, 5 prompt tokens done; CPU" in await asyncio.wait_for(task, 20)


async def test_a_busy_one_that_moves_is_asked_again_and_again(
    slots: Slots, activity: ServerActivity
) -> None:
    slots.tokens = 0

    def asked_often() -> bool:
        slots.tokens = slots.asked
        return slots.asked > 15

    async with watched_at_work(activity) as task:
        await eventually(asked_often, what="asked often")
        assert not task.done()
        slots.tokens = None
        before = slots.asked
        await eventually(lambda: slots.asked > before, what="seen idle")


async def test_one_that_does_not_answer_is_wedged_and_not_asked_again_and_again(
    slots: Slots, activity: ServerActivity
) -> None:
    slots.answers.clear()
    async with watched_at_work(activity) as task:
        assert "GET /slots is not answered" in await asyncio.wait_for(task, 20)
    assert slots.asked <= 3


async def test_one_that_tells_nothing_is_never_wedged(
    slots: Slots, activity: ServerActivity, caplog: pytest.LogCaptureFixture
) -> None:
    slots.status = 501
    async with watched_at_work(activity) as task:
        await eventually(lambda: "cannot be told from a busy one" in caplog.text, what="said so")
        assert not task.done()
    assert slots.asked == 1


@pytest.mark.parametrize(
    ("status", "answer"), [(503, ()), (200, (Slot(number=0, busy=False, processed=0),))]
)
async def test_slots_are_what_the_server_says(
    slots: Slots, activity: ServerActivity, status: int, answer: tuple[Slot, ...]
) -> None:
    slots.status = status
    assert await activity.slots(5) == answer


async def test_who_is_not_there_gives_no_answer(short_path: Path) -> None:
    address = UpstreamAddress.unix(str(short_path / "nobody"))
    nobody = ServerActivity(address=address, pid=1 << 30, gpus=None)
    assert await nobody.slots(5) is None
    assert nobody.cpu_s() == 0.0
    assert await nobody.gpu_in_use() is None


async def test_an_answer_of_another_kind_tells_nothing(
    slots: Slots, activity: ServerActivity
) -> None:
    slots.status = 404
    with pytest.raises(NotTelling, match="status 404"):
        await activity.slots(5)


async def test_an_answer_that_is_too_large_tells_nothing(
    slots: Slots, activity: ServerActivity
) -> None:
    """Some builds print the whole prompt of each slot."""
    slots.prompt = "x" * SLOTS_LIMIT_BYTES
    with pytest.raises(NotTelling, match="larger than 16777216 bytes"):
        await activity.slots(20)


async def test_cpu_time_grows_with_work(activity: ServerActivity) -> None:
    before = activity.cpu_s()

    def work() -> bool:
        return sum(range(100_000)) > 0 and activity.cpu_s() > before

    await eventually(work, what="more CPU time")


@pytest.mark.parametrize(
    ("instance", "visible", "args", "gpus"),
    [
        ("cpu0", "", (), ()),
        ("cpu0", "", ("--rpc", "h:1"), None),
        ("gpu0", "GPU-1,GPU-2", (), ("GPU-1", "GPU-2")),
        ("gpu1", "1", (), ("1",)),
        ("gpu0", "", (), None),
    ],
)
def test_the_gpus_are_those_that_it_sees(
    instance: str, visible: str, args: tuple[str, ...], gpus: tuple[str, ...] | None
) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": visible}
    assert gpus_of(InstanceName(instance), environment, args) == gpus


async def test_the_use_of_gpus_is_asked_of_nvml(
    activity: ServerActivity, fake_gpus: FakeGpus
) -> None:
    busy, idle = fake_gpus.add(), fake_gpus.add()
    fake_gpus.set_load(busy, utilisation=97)

    async def in_use(*gpus: str) -> bool | None:
        address = UpstreamAddress.unix("/absent")
        return await ServerActivity(address=address, pid=1, gpus=gpus).gpu_in_use()

    assert await activity.gpu_in_use() is False  # it has none
    assert await in_use(busy) is True
    assert await in_use(idle, busy) is True
    assert await in_use(idle) is False
    assert await in_use("1") is False
    assert await in_use(idle, "GPU-of-another-machine") is None
    fake_gpus.lose(idle)
    assert await in_use(idle) is None
