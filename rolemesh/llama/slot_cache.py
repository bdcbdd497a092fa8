"""Keeps the KV cache of a llama-server's slots over its restarts, for models with `save_slots`.

DIRECTORY/INSTANCE/           where the llama-server writes and reads (its --slot-save-path)
DIRECTORY/kept-KEY/           what one engine left, with manifest.json
                              {"format", "slots": [{"id", "file", "bytes", "sha256", "tokens"}]}

KEY stands for the model's files and everything else that determines how the engine behaves. What is
restored is taken away, so that no two engines get the same and nothing is restored twice. A failure
is one warning: the conversation's tokens are then read anew.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rolemesh import jsonread
from rolemesh.address import UpstreamAddress
from rolemesh.errors import NodeError, UpstreamError
from rolemesh.llama.activity import SLOTS_LIMIT_BYTES
from rolemesh.llama.file_access import open_regular
from rolemesh.names import InstanceName
from rolemesh.relay.fetch import fetch

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 10.0
MAX_TOTAL_BYTES: Final = 16 << 30
KEEP_FREE_BYTES: Final = 2 << 30
MIN_TOKENS: Final = 32
"""Fewer than these are read anew faster than a file is."""

_FORMAT: Final = 1
_MANIFEST: Final = "manifest.json"
_KEPT: Final = "kept-"
_MAX_MANIFEST_BYTES: Final = 1 << 20
_CHUNK_BYTES: Final = 4 << 20
_JSON: Final = (("Content-Type", "application/json"),)


class SlotCacheFailed(NodeError):
    """Slots were not saved or restored; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How long a start or a stop is kept back, and how much room what is kept may take."""

    patience_s: float = PATIENCE_S
    total_bytes: int = MAX_TOTAL_BYTES
    keep_free_bytes: int = KEEP_FREE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSlot:
    """One slot's KV cache in a file."""

    id: int
    file: str
    bytes: int
    sha256: str
    tokens: int


def make_slot_directory(cache: Path | None, instance: InstanceName) -> Path | None:
    """Make the directory that an instance's llama-server saves to; None where that is impossible.

    It is for this user alone: a KV cache holds what was said.
    """
    if cache is None:
        return None
    directory = cache / "slots" / instance
    try:
        directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.mkdir(exist_ok=True, mode=0o700)
    except OSError:
        return None
    return directory


def engine_key(args_hash: str, files: Sequence[Path]) -> str:
    """Return what the slots of an engine are kept by; `files` are all that it reads."""
    found = [args_hash]
    for path in files:
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append(f"{path} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(found).encode("utf-8", "surrogateescape")).hexdigest()[:24]


class SlotCache:
    """The saved slots of one engine."""

    def __init__(
        self,
        *,
        directory: Path,
        key: str,
        address: UpstreamAddress,
        bounds: Bounds | None = None,
    ) -> None:
        self._work = directory
        self._kept = directory.parent / f"{_KEPT}{key}"
        self._address = address
        self._bounds = bounds or Bounds()
        self._deadline = 0.0
        # Of the longest slot that was seen: how many bytes it took, for how many tokens.
        self._measured = (0, 1)

    async def restore(self) -> None:
        """Give a llama-server that is idle what the last one left; never raises."""
        self._deadline = time.monotonic() + self._bounds.patience_s
        begun = time.monotonic()
        try:
            saved = await asyncio.to_thread(self._take)
            for slot in saved:
                self._measure(slot)
                await self._restore(slot)
        except (NodeError, UpstreamError, OSError, ValueError) as err:
            logger.warning("the KV cache of its slots was not restored: %s", _reason(err))
        else:
            if saved:
                tokens = sum(slot.tokens for slot in saved)
                seconds = time.monotonic() - begun
                logger.info("restored %d slots (%d tokens) in %.1f s", len(saved), tokens, seconds)
        await asyncio.to_thread(self._clear)

    async def save(self) -> None:
        """Have a llama-server that is about to be stopped save its slots; never raises."""
        self._deadline = time.monotonic() + self._bounds.patience_s
        begun = time.monotonic()
        saved: list[SavedSlot] = []
        problem = ""
        try:
            await asyncio.to_thread(self._clear)
            for slot_id, tokens in await self._slots_worth_saving():
                before = sum(slot.bytes for slot in saved)
                saved.append(await self._save(slot_id, tokens, before))
        except (NodeError, UpstreamError, OSError, ValueError) as err:
            problem = _reason(err)
        try:
            await asyncio.to_thread(self._keep, saved)
        except (NodeError, OSError) as err:
            saved, problem = [], _reason(err)
        if problem:
            logger.warning(
                "the KV cache of %s was not saved: %s",
                "further slots" if saved else "its slots",
                problem,
            )
        elif saved:
            tokens, size = sum(slot.tokens for slot in saved), sum(slot.bytes for slot in saved)
            seconds = time.monotonic() - begun
            logger.info(
                "saved %d slots (%d tokens, %d MiB) in %.1f s",
                *(len(saved), tokens, size >> 20, seconds),
            )

    # --- what is asked of the llama-server ------------------------------------------------------

    async def _slots_worth_saving(self) -> list[tuple[int, int]]:
        """Return the numbers of slots, with how many tokens each has."""
        reply = await fetch(
            *(self._address, "GET", "/slots"),
            timeout_s=self._time_left(),
            limit_bytes=SLOTS_LIMIT_BYTES,
        )
        slots = json.loads(reply.body)
        if reply.status != 200 or not isinstance(slots, list):
            raise SlotCacheFailed(_refusal("GET /slots", reply.status, reply.body))
        # Older builds do not say how many tokens there are: the reply to saving does.
        return [
            (jsonread.get_int(slot, "id"), tokens)
            for slot in map(jsonread.as_object, slots)
            if not slot.get("is_processing")
            and (tokens := slot.get("n_prompt_tokens", MIN_TOKENS)) >= MIN_TOKENS
        ]

    async def _save(self, slot_id: int, tokens: int, before: int) -> SavedSlot:
        """Have a slot of so many tokens saved, after others that take `before` bytes."""
        known_bytes, known_tokens = self._measured
        expected = tokens * known_bytes // known_tokens
        await asyncio.to_thread(self._make_room, before + expected, expected)
        path = self._work / f"slot-{slot_id}.bin"
        reply = await self._act(slot_id, "save", path.name)
        await asyncio.to_thread(self._make_room, before + path.stat().st_size, 0)
        digest, size = await asyncio.to_thread(self._digest, path)
        slot = SavedSlot(
            id=slot_id,
            file=path.name,
            bytes=size,
            sha256=digest,
            tokens=jsonread.get_optional_int(reply, "n_saved") or 0,
        )
        self._measure(slot)
        return slot

    def _measure(self, slot: SavedSlot) -> None:
        if slot.tokens >= self._measured[1]:
            self._measured = slot.bytes, slot.tokens

    async def _restore(self, slot: SavedSlot) -> None:
        reply = await self._act(slot.id, "restore", slot.file)
        restored = jsonread.get_optional_int(reply, "n_restored")
        if restored != slot.tokens:
            msg = f"{restored} of {slot.tokens} tokens came back in slot {slot.id}"
            raise SlotCacheFailed(msg)

    async def _act(self, slot_id: int, action: str, file: str) -> dict[str, Any]:
        path = f"/slots/{slot_id}?action={action}"
        body = json.dumps({"filename": file}).encode()
        timeout_s = self._time_left()
        reply = await fetch(
            self._address, "POST", path, body=body, fields=_JSON, timeout_s=timeout_s
        )
        if reply.status != 200:
            raise SlotCacheFailed(_refusal(f"POST {path}", reply.status, reply.body))
        return dict(jsonread.as_object(json.loads(reply.body)))

    def _time_left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            msg = f"it took longer than {self._bounds.patience_s:g} s"
            raise SlotCacheFailed(msg)
        return left

    # --- files; in a thread of their own --------------------------------------------------------

    def _take(self) -> tuple[SavedSlot, ...]:
        """Take what was kept, so that nobody else does; return it once it is verified."""
        self._clear()
        try:
            # An empty directory gives way.
            self._kept.rename(self._work)
        except FileNotFoundError:
            return ()
        saved = _read_manifest(self._work / _MANIFEST)
        for slot in saved:
            if self._digest(self._work / slot.file) != (slot.sha256, slot.bytes):
                msg = f"{slot.file} is not what was saved"
                raise SlotCacheFailed(msg)
        return saved

    def _keep(self, saved: list[SavedSlot]) -> None:
        shutil.rmtree(self._kept, ignore_errors=True)
        if not saved:
            self._clear()
            return
        manifest = {"format": _FORMAT, "slots": [asdict(slot) for slot in saved]}
        (self._work / _MANIFEST).write_text(json.dumps(manifest), "utf-8")
        for path in self._work.iterdir():
            if path.name not in {_MANIFEST, *(slot.file for slot in saved)}:
                path.unlink(missing_ok=True)
        self._work.rename(self._kept)

    def _make_room(self, size: int, more: int) -> None:
        """Remove what was kept longest until `size` bytes fit, `more` of which are to be written."""
        bounds = self._bounds
        if size > bounds.total_bytes:
            msg = f"{size >> 20} MiB are more than may be kept ({bounds.total_bytes >> 20})"
            raise SlotCacheFailed(msg)
        kept = sorted(self._work.parent.glob(f"{_KEPT}*"), key=_kept_since, reverse=True)
        room = bounds.total_bytes - size
        for directory in kept:
            room -= sum(_sizes(directory))
            if room < 0:
                shutil.rmtree(directory, ignore_errors=True)
        free = shutil.disk_usage(self._work).free
        if free - more < bounds.keep_free_bytes:
            lacking = f" for {more >> 20} MiB" if more >> 20 else ""
            msg = f"only {free >> 20} MiB are free in {self._work}{lacking}"
            raise SlotCacheFailed(msg)

    def _clear(self) -> None:
        """Leave an empty directory for the llama-server."""
        shutil.rmtree(self._work, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._work.mkdir(mode=0o700, exist_ok=True)

    def _digest(self, path: Path) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        with open_regular(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                self._time_left()
                digest.update(chunk)
                size += len(chunk)
        return digest.hexdigest(), size


def _read_manifest(path: Path) -> tuple[SavedSlot, ...]:
    with open_regular(path) as file:
        fields = jsonread.as_object(json.loads(file.read(_MAX_MANIFEST_BYTES)))
    if fields.get("format") != _FORMAT:
        msg = f"{path.name} has format {fields.get('format')}, expected {_FORMAT}"
        raise SlotCacheFailed(msg)
    return tuple(
        SavedSlot(
            id=jsonread.get_int(slot, "id"),
            file=Path(jsonread.get_str(slot, "file")).name,
            bytes=jsonread.get_int(slot, "bytes"),
            sha256=jsonread.get_str(slot, "sha256"),
            tokens=jsonread.get_int(slot, "tokens"),
        )
        for slot in jsonread.get_objects(fields, "slots")
    )


def _sizes(directory: Path) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            yield path.stat().st_size


def _kept_since(directory: Path) -> float:
    try:
        return directory.stat().st_mtime
    except OSError:
        return 0.0


def _refusal(request: str, status: int, body: bytes) -> str:
    """Say what llama-server answered, in its words."""
    try:
        said = jsonread.as_object(jsonread.as_object(json.loads(body))["error"])["message"]
    except (ValueError, KeyError):
        said = body[:200].decode("utf-8", "replace")
    return f"{request} gave status {status}: {said}"


def _reason(err: Exception) -> str:
    if isinstance(err, OSError):
        return f"{err.filename or 'a file'}: {err.strerror}"
    return " ".join(str(err).split())
