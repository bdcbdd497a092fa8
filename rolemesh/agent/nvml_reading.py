"""Reads all GPUs through an open NVML: the calls, and what their failures mean.

https://docs.nvidia.com/deploy/nvml-api/ has the calls. Drivers and bindings lack some of them; what
cannot be had is left out of a reading, except for what makes it one: handle, UUID and memory.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any, Final

from rolemesh.agent.inventory import GpuProcess, GpuReading, GpuSample

HEALTH_INTERVAL_S: Final = 30.0
"""How often a card is asked about its errors, which are many calls and change rarely."""

_MIB: Final = 1024 * 1024
_MOST_EVENTS: Final = 64

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

_LOST: Final = {
    "NVMLError_GpuIsLost": (
        "the driver has lost the card (fallen off the bus?); `dmesg` names the Xid, and a reboot "
        "is what usually brings it back"
    ),
    "NVMLError_ResetRequired": (
        "the card needs a reset: `nvidia-smi --gpu-reset` once nothing uses it, or a reboot"
    ),
}
_UNKNOWN: Final = (
    "the driver answers for the card with nothing but Unknown Error; `dmesg` may say more, and a "
    "reboot is what usually helps"
)

# Newest first. A driver may be older than the binding, and a binding than the driver; where both
# are, there is no version in the name.
_COMPUTE, _GRAPHICS = (
    tuple(f"nvmlDeviceGet{kind}RunningProcesses{version}" for version in ("_v3", "_v2", ""))
    for kind in ("Compute", "Graphics")
)


class NvmlReader:
    """Reads samples one after the other; to be used by one thread."""

    def __init__(self, binding: ModuleType) -> None:
        self._nvml = binding
        # What the binding says in place of FunctionNotFound for functions with several versions.
        mismatch = getattr(binding, "NVMLLibraryMismatchError", binding.NVMLError)
        self._errors = (binding.NVMLError, mismatch)
        self._uuids: list[str] = []
        self._events: Any = None
        self._registered: set[str] = set()
        self._xids: dict[str, str] = {}
        self._health: dict[str, tuple[float, tuple[str, ...]]] = {}
        self.asking = ""
        """What is being asked for, for whoever waits for it in vain."""

    def begin(self) -> None:
        """Begin a session: NVML has just been started."""
        self._registered = set()
        self._events = self._ask("nvmlEventSetCreate")

    def read(self) -> GpuSample:
        """Return the GPUs as they are now; raises NVMLError when none can be told."""
        self.asking = "the number of cards"
        count = self._nvml.nvmlDeviceGetCount()
        if len(self._uuids) != count:
            self._uuids = [""] * count
        sample = GpuSample(driver_version=_text(self._nvml.nvmlSystemGetDriverVersion()))
        self._take_events()
        for index in range(count):
            self.asking = f"card {index} {self._uuids[index]}".rstrip()
            try:
                sample = self._add_card(sample, index)
            except self._nvml.NVMLError as err:
                sample = self._add_failure(sample, index, err)
        self.asking = ""
        return sample

    def _add_card(self, sample: GpuSample, index: int) -> GpuSample:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        card = self._read_card(handle)
        self._uuids[index] = card.uuid
        mode = self._ask("nvmlDeviceGetMigMode", handle)
        if not mode or mode[0] != 1:
            return replace(sample, readings=(*sample.readings, card))
        return replace(
            sample,
            readings=(*sample.readings, *self._read_slices(handle, card)),
            partitioned=sample.partitioned | {card.uuid},
        )

    def _add_failure(self, sample: GpuSample, index: int, err: Exception) -> GpuSample:
        uuid, why = self._uuids[index], why_lost(err)
        name = f"NVIDIA card {index}" + (f" ({uuid})" if uuid else "")
        if why and uuid in self._xids:
            why = f"{self._xids[uuid]}: {why}"
        problem = f"{name} cannot be read: {why or explain(err)}"
        gone = {uuid: why} if uuid and why else {}
        return replace(sample, problems=(*sample.problems, problem), gone={**sample.gone, **gone})

    def _read_card(self, handle: Any) -> GpuReading:
        uuid = _text(self._nvml.nvmlDeviceGetUUID(handle))
        rates = self._ask("nvmlDeviceGetUtilizationRates", handle)
        power_mw = self._ask("nvmlDeviceGetPowerUsage", handle)
        pci = self._ask("nvmlDeviceGetPciInfo", handle)
        sensor = self._nvml.NVML_TEMPERATURE_GPU
        return replace(
            self._read_device(handle, uuid),
            pci=_text(pci.busId) if pci else "",
            utilisation=rates.gpu if rates else None,
            temperature_c=self._ask("nvmlDeviceGetTemperature", handle, sensor),
            power_w=power_mw / 1000 if power_mw is not None else None,
            health=(*self._health_of(uuid, handle), *self._xids_of(uuid, handle)),
        )

    def _read_slices(self, handle: Any, card: GpuReading) -> Iterator[GpuReading]:
        """Yield the MIG devices of a card: they have memory and processes of their own."""
        for index in range(self._ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            part = self._ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
            if part is None:  # their indices need not be in a row
                continue
            yield replace(
                self._read_device(part, _text(self._nvml.nvmlDeviceGetUUID(part))),
                parent=card.uuid,
                pci=card.pci,
                temperature_c=card.temperature_c,
                health=card.health,
            )

    def _read_device(self, handle: Any, uuid: str) -> GpuReading:
        """Return what cards and MIG devices both tell."""
        memory = self._memory(handle)
        return GpuReading(
            uuid=uuid,
            name=_text(self._nvml.nvmlDeviceGetName(handle)),
            memory_total_mib=memory.total // _MIB if memory else None,
            memory_used_mib=memory.used // _MIB if memory else None,
            processes=self._processes(handle),
        )

    def _memory(self, handle: Any) -> Any:
        """Return the figures, None on machines whose GPU has no memory of its own."""
        try:
            return self._nvml.nvmlDeviceGetMemoryInfo(handle)
        except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_NoPermission):
            return None

    def _processes(self, handle: Any) -> tuple[GpuProcess, ...]:
        """Return who computes or draws there; who does both has the same memory in both lists."""
        found: dict[int, int | None] = {}
        for names in (_COMPUTE, _GRAPHICS):
            for process in self._ask_any(names, handle) or ():
                memory = process.usedGpuMemory
                mib = None if memory is None else memory // _MIB
                known = found.get(process.pid)
                found[process.pid] = mib if known is None else max(known, mib or 0)
        return tuple(GpuProcess(pid=pid, memory_mib=mib) for pid, mib in sorted(found.items()))

    def _health_of(self, uuid: str, handle: Any) -> tuple[str, ...]:
        now = time.monotonic()
        asked_at, words = self._health.get(uuid, (-HEALTH_INTERVAL_S, ()))
        if now - asked_at >= HEALTH_INTERVAL_S:
            words = tuple(self._ask_health(handle))
            self._health[uuid] = (now, words)
        return words

    def _ask_health(self, handle: Any) -> Iterator[str]:
        """Yield what is wrong with the card's memory.

        Cards since Ampere remap rows, older ones retire pages:
        https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/
        """
        uncorrected, volatile = 1, 0  # NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC
        errors = self._ask("nvmlDeviceGetTotalEccErrors", handle, uncorrected, volatile)
        if errors:
            yield f"{errors} uncorrected memory errors since the driver was loaded"
        _, _, pending, failed = self._ask("nvmlDeviceGetRemappedRows", handle) or (0, 0, 0, 0)
        if failed:
            yield "a row of its memory could not be remapped: the card should be replaced"
        elif pending:
            yield "a row of its memory waits to be remapped by a reset"
        if self._ask("nvmlDeviceGetRetiredPagesPendingStatus", handle) == 1:
            yield "pages of its memory wait to be retired by a reset"

    def _xids_of(self, uuid: str, handle: Any) -> tuple[str, ...]:
        """Return the last error that the driver reported of the card since it was first seen."""
        if self._events is not None and uuid not in self._registered:
            self._registered.add(uuid)
            kind = self._nvml.nvmlEventTypeXidCriticalError
            self._ask("nvmlDeviceRegisterEvents", handle, kind, self._events)
        return (self._xids[uuid],) if uuid in self._xids else ()

    def _take_events(self) -> None:
        """Remember what the driver has reported since the last look.

        What an Xid means: https://docs.nvidia.com/deploy/xid-errors/
        """
        for _ in range(_MOST_EVENTS if self._events is not None else 0):
            try:
                event = self._nvml.nvmlEventSetWait(self._events, 0)
                uuid = _text(self._nvml.nvmlDeviceGetUUID(event.device))
            except self._errors:  # above all: nothing has happened
                return
            self._xids[uuid] = f"Xid {event.eventData} at {time.strftime('%Y-%m-%d %H:%M:%S')}"

    def _ask(self, name: str, *arguments: Any) -> Any:
        """Return an answer, None where card, driver or binding do not have that one."""
        return self._ask_any((name,), *arguments)

    def _ask_any(self, names: tuple[str, ...], *arguments: Any) -> Any:
        for name in names:
            query = getattr(self._nvml, name, None)
            if query is None:
                continue
            try:
                return query(*arguments)
            except self._errors as err:
                if type(err).__name__ in _LOST:
                    raise
        return None


def explain(err: Exception) -> str:
    """Say what an error of NVML means, with what mends it where that is known."""
    return _REMEDIES.get(type(err).__name__, f"NVML: {err}")


def why_lost(err: Exception) -> str:
    """Say why a card with this error cannot be used any more; "" when it might be."""
    name = type(err).__name__
    return _UNKNOWN if name == "NVMLError_Unknown" else _LOST.get(name, "")


def _text(value: Any) -> str:
    """Return a string of NVML; older bindings give bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
