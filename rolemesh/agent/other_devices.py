"""Devices that only llama-server knows (Vulkan, ROCm, SYCL, RPC, ...): `llama-server --list-devices`.

Its output, since llama.cpp has it (common/arg.cpp, 2024):

    Available devices:
      Vulkan0: AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24100 MiB free)

Asking wakes all devices up and takes a while, so it is done rarely: at first, after a reload, when
the program's file changed. The memory that is free is what was free then.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rolemesh.agent.inventory import GpuReading
from rolemesh.config.settings import LlamaServer, NodeSettings
from rolemesh.llama.build import Signature, file_signature
from rolemesh.llama.command import Devices, build_environment
from rolemesh.llama.job_checks import PROGRAM_NAME

ASK_TIMEOUT_S: Final = 10.0
"""How long the program may take. It opens every device, of every backend it was built with."""

RETRY_S: Final = 60.0
"""How often a program that failed is asked again: what it needs may come later."""

_END_TIMEOUT_S: Final = 2.0
_MAX_OUTPUT: Final = 64 * 1024
_LONGEST_REASON: Final = 200
_LINE: Final = re.compile(
    r"  ([A-Za-z0-9][A-Za-z0-9/:._\[\]-]{0,127}): (.*) \(([0-9]{1,9}) MiB, ([0-9]{1,9}) MiB free\)"
)
_OPTION: Final = "--list-devices"


class OtherDevices:
    """What llama-server named when it was last asked; to be used by one task at a time."""

    def __init__(self, timeout_s: float = ASK_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._settings: NodeSettings | None = None
        self._signature: Signature | None = None
        self._retry_at = float("inf")
        self._devices: tuple[GpuReading, ...] = ()
        self.problem = ""
        """Why it could not be asked; "" when it could, or when it does not know the question."""

    async def read(self, settings: NodeSettings) -> tuple[GpuReading, ...]:
        """Return the devices; never raises. Other settings than before are a reload."""
        program = _find_program(settings.llama_server)
        signature = None if program is None else file_signature(program)
        is_known = settings is self._settings and signature == self._signature
        if program is None or (is_known and time.monotonic() < self._retry_at):
            return self._devices if is_known else ()
        self._settings, self._signature = settings, signature
        output, self.problem = await self._ask(program, settings.llama_server.args)
        self._devices = tuple(read_devices(output))
        self._retry_at = time.monotonic() + RETRY_S if self.problem else float("inf")
        return self._devices

    async def _ask(self, program: Path, args: tuple[str, ...]) -> tuple[str, str]:
        """Return what the program says, or "" and why it says nothing."""
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                # It is answered as soon as it is read: what comes after it would not count.
                *(*args, _OPTION),
                env=_environment(),
                cwd="/",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as err:
            return "", f"{program} {_OPTION}: {err.strerror}"
        try:
            async with asyncio.timeout(self._timeout_s):
                return await _answer(process, f"{program} {_OPTION}")
        except TimeoutError:
            return "", f"{program} {_OPTION} has not answered within {self._timeout_s:g} s"
        finally:
            await _end(process)


async def _answer(process: asyncio.subprocess.Process, question: str) -> tuple[str, str]:
    said, complaint = await asyncio.gather(*map(_read, _outputs(process)))
    status = await process.wait()
    if status == 0:
        return said.decode(errors="replace"), ""
    lines = complaint.decode(errors="replace").splitlines()
    reason = next((line.strip() for line in lines if line.strip()), f"status {status}")
    if _OPTION in reason:  # a build from before it
        return "", ""
    return "", f"{question}: {reason[:_LONGEST_REASON]}"


async def _read(output: asyncio.StreamReader) -> bytes:
    content = b""
    while len(content) < _MAX_OUTPUT and (more := await output.read(_MAX_OUTPUT)):
        content += more
    return content


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process with all it started, and let go of it; not of one that a driver holds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_TIMEOUT_S):
            for output in _outputs(process):
                while await output.read(_MAX_OUTPUT):
                    pass
            _ = await process.wait()


def _outputs(process: asyncio.subprocess.Process) -> tuple[asyncio.StreamReader, ...]:
    return tuple(each for each in (process.stdout, process.stderr) if each is not None)


def read_devices(output: str) -> Iterator[GpuReading]:
    """Yield the devices in what the program says.

    A card that several backends have is the first one's: by its description, to which some add the
    name of their driver in brackets. What has no memory (BLAS) is no place for a model.
    """
    owners: dict[str, str] = {}
    for line in output.splitlines():
        match = _LINE.fullmatch(line)
        if match is None or int(match[3]) == 0:
            continue
        name, description, total, free = match[1], match[2], int(match[3]), int(match[4])
        backend = re.split(r"[0-9\[]", name)[0]
        if owners.setdefault(description.partition(" (")[0], backend) == backend:
            yield GpuReading(
                uuid=name,
                name=description,
                kind="device",
                memory_total_mib=total,
                memory_used_mib=max(total - free, 0),
            )


def _environment() -> dict[str, str]:
    """Return what llama-servers get, and nothing that debugs one which gives up."""
    return {**build_environment(os.environ, Devices()), "GGML_NO_BACKTRACE": "1"}


def _find_program(configured: LlamaServer) -> Path | None:
    found = configured.path or shutil.which(PROGRAM_NAME)
    return None if found is None else Path(found)
