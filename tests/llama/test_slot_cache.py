"""What is kept of a llama-server's slots, verified, and given to the next one."""

import asyncio
import json
import logging
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.llama.slot_cache import Bounds, SlotCache, engine_key, make_slot_directory
from rolemesh.names import InstanceName

PLENTY = Bounds(keep_free_bytes=0)


class SlotServer:
    """A llama-server's slots: `slots` are their tokens, a file has as many bytes.

    `saved` are those that it was asked to save, `peak` the most bytes that were on disk then.
    """

    def __init__(self, folder: Path, directory: Path) -> None:
        self.address = UpstreamAddress.unix(str(folder / "http.sock"))
        self.directory = directory
        self.slots: dict[int, int] = {}
        self.busy: set[int] = set()
        self.restored: dict[int, int] = {}
        self.saved: list[int] = []
        self.peak = 0
        self.refusal = ""
        self.hangs = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        body = json.loads(await reader.readexactly(int(length[1])) if length else b"null")
        if self.hangs and head.startswith("POST"):
            await reader.read()
            writer.close()
            return
        status, answer = self._answer(head, body)
        content = json.dumps(answer).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(content), content)
        )
        await writer.drain()
        writer.close()

    def _answer(self, head: str, body: Any) -> tuple[int, Any]:
        asked = re.match(r"POST /slots/(\d+)\?action=(\w+) ", head)
        if asked is None:
            return 200, [
                {"id": number, "is_processing": number in self.busy, "n_prompt_tokens": tokens}
                for number, tokens in self.slots.items()
            ]
        number, path = int(asked[1]), self.directory / body["filename"]
        if self.refusal:
            return 501, {"error": {"message": self.refusal}}
        if asked[2] == "save":
            path.write_bytes(b"k" * self.slots[number])
            self.saved.append(number)
            files = self.directory.parent.rglob("*.bin")
            self.peak = max(self.peak, sum(each.stat().st_size for each in files))
            return 200, {"n_saved": self.slots[number]}
        self.restored[number] = len(path.read_bytes())
        return 200, {"n_restored": self.restored[number]}


@pytest.fixture
async def server(short_path: Path) -> AsyncIterator[SlotServer]:
    directory = make_slot_directory(short_path / "cache", InstanceName("gpu0"))
    assert directory is not None
    server = SlotServer(short_path, directory)
    listener = await asyncio.start_unix_server(server.serve, short_path / "http.sock")
    try:
        yield server
    finally:
        listener.close()


def cache_of(server: SlotServer, key: str = "a", bounds: Bounds = PLENTY) -> SlotCache:
    return SlotCache(directory=server.directory, key=key, address=server.address, bounds=bounds)


def kept(server: SlotServer) -> list[str]:
    return sorted(path.name for path in server.directory.parent.glob("kept-*"))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


async def test_what_was_saved_is_restored_once(
    server: SlotServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server.slots = {0: 500, 1: 3, 2: 900, 3: 700}
    server.busy = {3}
    await cache_of(server).save()
    assert kept(server) == ["kept-a"]
    await cache_of(server, "b").restore()
    assert server.restored == {}
    await cache_of(server).restore()
    assert server.restored == {0: 500, 2: 900}
    await cache_of(server).restore()
    assert kept(server) == []
    assert list(server.directory.iterdir()) == []
    assert [text.partition(" in ")[0] for text in caplog.messages] == [
        "saved 2 slots (1400 tokens, 0 MiB)",
        "restored 2 slots (1400 tokens)",
    ]


def shorten(path: Path) -> None:
    os.truncate(path / "slot-2.bin", 899)


def change(path: Path) -> None:
    (path / "slot-2.bin").write_bytes(b"x" * 900)


def remove(path: Path) -> None:
    (path / "slot-2.bin").unlink()


def forget(path: Path) -> None:
    (path / "manifest.json").write_text("[]")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (shorten, "slot-2.bin is not what was saved"),
        (change, "slot-2.bin is not what was saved"),
        (remove, "slot-2.bin: No such file or directory"),
        (forget, "expected a JSON object, found list"),
    ],
)
async def test_what_is_not_as_it_was_saved_is_not_restored(
    server: SlotServer,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
    reason: str,
) -> None:
    server.slots = {0: 500, 2: 900}
    await cache_of(server).save()
    spoil(server.directory.with_name("kept-a"))
    await cache_of(server).restore()
    assert server.restored == {}
    (warning,) = warnings(caplog)
    assert warning.startswith("the KV cache of its slots was not restored: ")
    assert warning.endswith(reason)
    assert kept(server) == []


async def test_what_llama_server_refuses_is_one_warning_in_its_words(
    server: SlotServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.slots = {0: 500, 1: 600}
    server.refusal = "This server does not support it"
    await cache_of(server).save()
    assert warnings(caplog) == [
        "the KV cache of its slots was not saved: POST /slots/0?action=save gave status 501: "
        "This server does not support it"
    ]
    assert kept(server) == []


async def test_nobody_waits_longer_than_the_bound(
    server: SlotServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.slots = {0: 500}
    bounds = Bounds(patience_s=0.2, keep_free_bytes=0)
    await cache_of(server).save()
    server.hangs = True
    await cache_of(server, bounds=bounds).restore()
    await cache_of(server, bounds=bounds).save()
    assert len(warnings(caplog)) == 2
    assert kept(server) == []


async def test_a_server_that_is_gone_is_one_warning(
    server: SlotServer, caplog: pytest.LogCaptureFixture
) -> None:
    (server.directory.parents[2] / "http.sock").unlink()
    await cache_of(server).save()
    assert len(warnings(caplog)) == 1


async def test_what_was_kept_longest_makes_room(
    server: SlotServer, caplog: pytest.LogCaptureFixture
) -> None:
    bounds = Bounds(total_bytes=2500, keep_free_bytes=0)
    server.slots = {0: 500}
    for age, key in enumerate(("c", "b", "a")):
        await cache_of(server, key, bounds).save()
        path = server.directory.with_name(f"kept-{key}")
        os.utime(path, (0, 1000 + age))
    assert kept(server) == ["kept-a", "kept-b", "kept-c"]
    server.slots = {0: 1400}
    await cache_of(server, "d", bounds).save()
    assert kept(server) == ["kept-a", "kept-d"]
    server.slots = {0: 2600}
    await cache_of(server, "e", bounds).save()
    assert kept(server) == ["kept-a", "kept-d"]
    (warning,) = warnings(caplog)
    assert warning.endswith("0 MiB are more than may be kept (0)")


async def test_a_disk_that_is_nearly_full_is_left_alone(
    server: SlotServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.slots = {0: 500}
    await cache_of(server, bounds=Bounds(keep_free_bytes=1 << 60)).save()
    (warning,) = warnings(caplog)
    assert "MiB are free in " in warning
    assert kept(server) == []


async def test_no_slot_is_saved_that_would_not_be_kept(
    server: SlotServer, caplog: pytest.LogCaptureFixture
) -> None:
    bounds = Bounds(total_bytes=1000, keep_free_bytes=0)
    server.slots = {0: 400, 1: 500, 2: 300, 3: 50}
    await cache_of(server, bounds=bounds).save()
    assert server.saved == [0, 1]
    (warning,) = warnings(caplog)
    assert warning.startswith("the KV cache of further slots was not saved: ")
    cache = cache_of(server, bounds=bounds)
    await cache.restore()
    assert server.restored == {0: 400, 1: 500}
    server.slots = {0: 2000}
    await cache.save()
    assert server.saved == [0, 1], "what a token takes is known from what was restored"
    assert kept(server) == []


async def test_room_is_made_before_more_is_written(server: SlotServer) -> None:
    bounds = Bounds(total_bytes=2500, keep_free_bytes=0)
    server.slots = {0: 500}
    for key in ("a", "b", "c"):
        await cache_of(server, key, bounds).save()
    server.slots = {0: 700, 1: 700, 2: 700}
    await cache_of(server, "d", bounds).save()
    assert server.saved[3:] == [0, 1, 2]
    assert "kept-d" in kept(server)
    assert server.peak <= 2500


async def test_a_slot_that_would_fill_the_disk_is_not_saved(
    server: SlotServer, caplog: pytest.LogCaptureFixture
) -> None:
    bounds = Bounds(total_bytes=1 << 62, keep_free_bytes=0)
    cache = cache_of(server, bounds=bounds)
    server.slots = {0: 500}
    await cache.save()
    server.slots = {0: 1 << 60}
    await cache.save()
    assert server.saved == [0]
    assert " MiB are free in " in warnings(caplog)[0]


def test_an_engines_slots_are_kept_by_all_that_it_reads(tmp_path: Path) -> None:
    model, adapter = tmp_path / "m.gguf", tmp_path / "a.gguf"
    for path in (model, adapter):
        path.write_text("x")
    keys = {
        engine_key("h", (model,)),
        engine_key("i", (model,)),
        engine_key("h", (model, adapter)),
    }
    adapter.write_text("xy")
    assert len(keys | {engine_key("h", (model, adapter))}) == 4
    assert engine_key("h", (model,)) in keys


def test_saved_slots_are_for_their_owner_alone(tmp_path: Path) -> None:
    directory = make_slot_directory(tmp_path, InstanceName("gpu0"))
    assert directory is not None
    assert [each.stat().st_mode & 0o777 for each in (directory, directory.parent)] == [0o700] * 2
    (tmp_path / "file").touch()
    assert make_slot_directory(tmp_path / "file", InstanceName("gpu0")) is None
    assert make_slot_directory(None, InstanceName("gpu0")) is None
