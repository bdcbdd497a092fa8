"""Thin adapter over NVML, the only importer of its binding (pynvml, of nvidia-ml-py).

Nothing it lacks is an error: a missing binding, library or driver and a lost card become problems
in the sample, one line each, saying what brings or mends it.
"""

import asyncio
import contextlib
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from rolemesh.agent.inventory import GpuReading, GpuSample

_MIB: Final = 1024 * 1024

_NO_BINDING: Final = (
    "no Python binding to NVML: GPUs cannot be seen; on a GPU host install nvidia-ml-py "
    "(pip install nvidia-ml-py; Debian and Ubuntu: apt install python3-pynvml)"
)
_REMEDIES: Final = {
    "NVMLError_LibraryNotFound": (
        "no NVIDIA driver library (libnvidia-ml.so.1); on a GPU host install the driver "
        "(Debian: nvidia-driver and libnvidia-ml1, Ubuntu: nvidia-utils-NNN)"
    ),
    "NVMLError_DriverNotLoaded": (
        "the NVIDIA kernel driver is not loaded; `modprobe nvidia` loads it, `dmesg` says why not"
    ),
    "NVMLError_LibRmVersionMismatch": (
        "the NVIDIA library and the loaded kernel driver are of different versions, as after an "
        "upgrade; a reboot mends that"
    ),
    "NVMLError_NoPermission": (
        "the NVIDIA devices may not be opened; this user needs read and write access to "
        "/dev/nvidia*"
    ),
}


class Nvml:
    """Reads all GPUs; to be used by one task at a time."""

    def __init__(self) -> None:
        self._binding: ModuleType | None = None
        self._is_open = False

    async def read(self) -> GpuSample:
        """Return the GPUs as they are now; never raises."""
        return await asyncio.to_thread(self._read)

    async def close(self) -> None:
        """Let go of the driver."""
        await asyncio.to_thread(self._close)

    def _read(self) -> GpuSample:
        try:
            self._binding = binding = self._binding or importlib.import_module("pynvml")
        except ImportError:
            return GpuSample(problems=(_NO_BINDING,))
        try:
            if not self._is_open:
                binding.nvmlInit()
                self._is_open = True
            return _read_gpus(binding)
        except (binding.NVMLError, OSError) as err:
            self._close()  # so that the next reading starts afresh: the driver may come back
            return GpuSample(problems=(_explain(err),))

    def _close(self) -> None:
        if self._binding is not None and self._is_open:
            self._is_open = False
            with contextlib.suppress(self._binding.NVMLError):  # gone already is gone too
                self._binding.nvmlShutdown()


def _read_gpus(binding: ModuleType) -> GpuSample:
    readings: list[GpuReading] = []
    problems: list[str] = []
    for index in range(binding.nvmlDeviceGetCount()):
        try:
            readings.append(_read_gpu(binding, binding.nvmlDeviceGetHandleByIndex(index)))
        except binding.NVMLError as err:
            problems.append(f"NVIDIA card {index} cannot be read: {_explain(err)}")
    return GpuSample(
        readings=tuple(readings),
        driver_version=_text(binding.nvmlSystemGetDriverVersion()),
        problems=tuple(problems),
    )


def _read_gpu(binding: ModuleType, handle: Any) -> GpuReading:
    def optional(query: Callable[..., Any], *arguments: Any) -> Any:
        """Return an answer, None where card, driver or binding do not have that one."""
        absent = (binding.NVMLError_NotSupported, binding.NVMLError_FunctionNotFound)
        try:
            return query(handle, *arguments)
        except absent:
            return None

    memory = optional(binding.nvmlDeviceGetMemoryInfo)
    rates = optional(binding.nvmlDeviceGetUtilizationRates)
    power_mw = optional(binding.nvmlDeviceGetPowerUsage)
    pci = optional(binding.nvmlDeviceGetPciInfo)
    processes = optional(binding.nvmlDeviceGetComputeRunningProcesses) or ()
    return GpuReading(
        uuid=_text(binding.nvmlDeviceGetUUID(handle)),
        name=_text(binding.nvmlDeviceGetName(handle)),
        pci=_text(pci.busId) if pci else "",
        memory_total_mib=memory.total // _MIB if memory else None,
        memory_used_mib=memory.used // _MIB if memory else None,
        utilisation=rates.gpu if rates else None,
        temperature_c=optional(binding.nvmlDeviceGetTemperature, binding.NVML_TEMPERATURE_GPU),
        power_w=power_mw / 1000 if power_mw is not None else None,
        pids=tuple(process.pid for process in processes),
    )


def _explain(err: Exception) -> str:
    return _REMEDIES.get(type(err).__name__, f"NVML: {err}")


def _text(value: Any) -> str:
    """Return a string of NVML; older bindings give bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
