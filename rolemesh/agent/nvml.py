"""Thin adapter over NVML, the only importer of its binding (pynvml, of nvidia-ml-py).

Nothing it lacks is an error: a missing binding, library or driver, a lost card and a driver that
hangs become problems in the sample, one line each, saying what brings or mends it.

A card that is dying may keep a call in the driver for minutes or for ever. So the calls are made by
a thread of their own, one at a time; whoever waits does so for DEADLINE_S at most.
"""

import asyncio
import contextlib
import importlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from rolemesh.agent.inventory import GpuSample
from rolemesh.agent.nvml_reading import NvmlReader, explain

DEADLINE_S: Final = 10.0
"""How long a sample may take. The first wakes cards up, which takes a second or two each."""

REOPEN_S: Final = 60.0
"""How often NVML is started anew while a card cannot be read: a session does not see it return."""

KNOWN_TO_DRIVER: Final = Path("/proc/driver/nvidia/gpus")
"""Has a directory for each card; a session of NVML knows only those of when it began."""

_NO_BINDING: Final = (
    "no Python binding to NVML: GPUs cannot be seen; on a GPU host install nvidia-ml-py "
    "(pip install nvidia-ml-py; Debian and Ubuntu: apt install python3-pynvml)"
)


class Nvml:
    """Reads all GPUs; never raises."""

    def __init__(
        self,
        *,
        deadline_s: float = DEADLINE_S,
        reopen_s: float = REOPEN_S,
        known_to_driver: Path = KNOWN_TO_DRIVER,
    ) -> None:
        self._deadline_s = deadline_s
        self._session = _Session(reopen_s, known_to_driver)
        self._thread = _CallThread()
        self._answer: asyncio.Future[GpuSample] | None = None
        self._asked_at = ""
        self._is_late = False
        self._last = GpuSample()

    async def read(self) -> GpuSample:
        """Return the GPUs as they are now.

        While the driver does not answer: as they were when it last did, with that as a problem. Who
        asks while another does gets the same answer.
        """
        if self._answer is None:
            self._answer = self._thread.call(self._session.read)
            self._asked_at, self._is_late = time.strftime("%H:%M:%S"), False
        answer = self._answer
        if not self._is_late:
            _ = await asyncio.wait((answer,), timeout=self._deadline_s)
        if not answer.done():
            self._is_late = True
            return replace(self._last, problems=(self._silence(),), answered=False)
        if self._answer is answer:
            self._answer = None
        err = answer.exception()
        if err is not None:
            return replace(self._last, problems=(f"NVML: {type(err).__name__}: {err}",))
        self._last = answer.result()
        return self._last

    async def close(self) -> None:
        """Let go of the driver; of one that hangs, the kernel does with the process."""
        if self._answer is None:
            closed = self._thread.call(self._session.close)
            _ = await asyncio.wait((closed,), timeout=self._deadline_s)
        self._thread.end()

    def _silence(self) -> str:
        asking = self._session.asking
        about = f" (asked for {asking})" if asking else ""
        return (
            f"NVML has not answered since {self._asked_at}{about}: the NVIDIA driver hangs, as it "
            "does for a card that is dying; figures of GPUs are from before, `dmesg` may say more"
        )


class _Session:
    """NVML, opened when first needed and again after failures; for one thread."""

    def __init__(self, reopen_s: float, known_to_driver: Path) -> None:
        self._reopen_s = reopen_s
        self._known_to_driver = known_to_driver
        self._binding: ModuleType | None = None
        self._reader: NvmlReader | None = None
        self._cards: frozenset[str] = frozenset()
        self._reopen_at = 0.0

    @property
    def asking(self) -> str:
        """What is being asked for now."""
        return "a start of NVML" if self._reader is None else self._reader.asking

    def read(self) -> GpuSample:
        try:
            binding = self._binding = self._binding or importlib.import_module("pynvml")
        except ImportError:
            return GpuSample(problems=(_NO_BINDING,))
        try:
            sample = self._open(binding).read()
        except (binding.NVMLError, OSError, AttributeError) as err:
            self.close()  # so that the next reading starts afresh: the driver may come back
            return GpuSample(problems=(explain(err),))
        if not sample.problems:
            self._reopen_at = 0.0
        elif not self._reopen_at:
            self._reopen_at = time.monotonic() + self._reopen_s
        return sample

    def _open(self, binding: ModuleType) -> NvmlReader:
        cards = self._cards_of_the_driver()
        is_due = 0.0 < self._reopen_at <= time.monotonic()
        if self._reader is not None and (is_due or cards != self._cards):
            self._reopen_at = 0.0
            binding.nvmlShutdown()
            binding.nvmlInit()
            self._reader.begin()
        elif self._reader is None:
            binding.nvmlInit()
            self._reader = NvmlReader(binding)
            self._reader.begin()
        self._cards = cards
        return self._reader

    def close(self) -> None:
        if self._binding is not None and self._reader is not None:
            self._reader = None
            with contextlib.suppress(self._binding.NVMLError):  # gone already is gone too
                self._binding.nvmlShutdown()

    def _cards_of_the_driver(self) -> frozenset[str]:
        try:
            return frozenset(each.name for each in self._known_to_driver.iterdir())
        except OSError:
            return frozenset()


class _CallThread:
    """Makes calls that may never return, one after the other, in one thread.

    Nobody waits for it at the end of the process, as for those of asyncio.to_thread.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Return what `function` will return."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def tell(result: Any, err: Exception | None = None) -> None:
            if err is not None:
                future.set_exception(err)
            else:
                future.set_result(result)

        def make() -> None:
            try:
                said: tuple[Any, ...] = (function(),)
            except Exception as err:  # noqa: BLE001 - bindings are many, and the thread has to live
                said = (None, err)
            with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
                loop.call_soon_threadsafe(tell, *said)

        self._calls.put(make)
        return future

    def end(self) -> None:
        """Let the thread end after its last call."""
        self._calls.put(None)
        self._thread = None

    def _run(self) -> None:
        while (make := self._calls.get()) is not None:
            make()
