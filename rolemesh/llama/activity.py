"""What a llama-server is doing: its slots, its CPU time, and whether its GPUs are in use."""

import asyncio
import contextlib
import importlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from rolemesh.address import UpstreamAddress
from rolemesh.errors import NodeError, ReplyTooLarge, UpstreamError
from rolemesh.llama.command import is_cpu
from rolemesh.llama.wedge import Slot, read_slots
from rolemesh.names import InstanceName
from rolemesh.relay.fetch import fetch

SLOTS_LIMIT_BYTES: Final = 16 << 20
GPU_TIMEOUT_S: Final = 10.0
"""A driver that has lost a card may answer late, or never."""

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class NotTelling(NodeError):
    """A llama-server does not tell what its slots do; the text says what it tells instead."""


class ServerActivity:
    """Looks at one running llama-server.

    `gpus` are its GPUs as in CUDA_VISIBLE_DEVICES: none for one that has none, None for devices
    that NVML does not know.
    """

    def __init__(
        self,
        *,
        address: UpstreamAddress,
        pid: int,
        gpus: tuple[str, ...] | None,
        proc: Path = Path("/proc"),
    ) -> None:
        self._address = address
        self._stat = proc / str(pid) / "stat"
        self._gpus = gpus

    async def slots(self, timeout_s: float) -> tuple[Slot, ...] | None:
        """Ask GET /slots once; None: no answer within `timeout_s`. Raises NotTelling."""
        try:
            reply = await fetch(
                self._address,
                "GET",
                "/slots",
                timeout_s=timeout_s,
                limit_bytes=SLOTS_LIMIT_BYTES,
            )
        except ReplyTooLarge as err:
            msg = f"GET /slots: {err}"
            raise NotTelling(msg) from err
        except UpstreamError:
            return None
        if reply.status == 503:
            return ()  # it loads anew, as after --sleep-idle-seconds
        slots = read_slots(reply.body) if reply.status == 200 else None
        if slots is None:
            msg = f"GET /slots gives nothing to judge by (status {reply.status})"
            raise NotTelling(msg)
        return slots

    def cpu_s(self) -> float:
        """Return the CPU seconds that the process has used so far (proc_pid_stat(5)), 0 if unknown."""
        try:
            fields = self._stat.read_text(errors="replace").rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
        except (OSError, IndexError, ValueError):
            return 0.0

    async def gpu_in_use(self) -> bool | None:
        """Tell whether any of its GPUs is working now, for whomever; None: that cannot be told."""
        if not self._gpus:
            return None if self._gpus is None else False
        answer = _ask_in_thread(self._gpus)
        _ = await asyncio.wait((answer,), timeout=GPU_TIMEOUT_S)
        return answer.result() if answer.done() else None


def gpus_of(
    instance: InstanceName, environment: Mapping[str, str], args: tuple[str, ...]
) -> tuple[str, ...] | None:
    """Return the GPUs of a llama-server with this environment and these arguments; see `gpus`."""
    if "--rpc" in args:
        return None  # some of its devices are elsewhere
    if is_cpu(instance):
        return ()
    named = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return tuple(filter(None, named)) or None


def _ask_in_thread(gpus: tuple[str, ...]) -> asyncio.Future[bool | None]:
    """Ask in a thread that nobody's end waits for: a driver may keep it for ever."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bool | None] = loop.create_future()

    def ask() -> None:
        found = _any_in_use(gpus)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            _ = loop.call_soon_threadsafe(answer.set_result, found)

    threading.Thread(target=ask, name="gpu use", daemon=True).start()
    return answer


def _any_in_use(gpus: tuple[str, ...]) -> bool | None:
    try:
        # Only now: a llama-server that is never suspected costs no NVML.
        binding = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        binding.nvmlInit()
        try:
            answers = [_in_use(binding, gpu) for gpu in gpus]
        finally:
            binding.nvmlShutdown()
    except (binding.NVMLError, OSError, AttributeError):
        return None
    return True if True in answers else None if None in answers else False


def _in_use(binding: ModuleType, gpu: str) -> bool | None:
    try:
        handle: Any = (
            binding.nvmlDeviceGetHandleByIndex(int(gpu))
            if gpu.isdecimal()
            else binding.nvmlDeviceGetHandleByUUID(gpu)
        )
        return bool(binding.nvmlDeviceGetUtilizationRates(handle).gpu > 0)
    except binding.NVMLError:  # a slice of a card does not tell
        return None
