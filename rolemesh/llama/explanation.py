"""Why a llama-server ended, in one line: by its log, the way it ended, and what the kernel did; pure.

The patterns are llama-server's own words, of builds from 2024 to 2026 (llama.cpp's src/, common/,
tools/server/ and tools/mtmd/, ggml/src/gguf.cpp and ggml's backends), and those of the C library.
"""

import re
import signal
from collections.abc import Mapping, Sequence
from typing import Final

_SHOWN_CHARACTERS: Final = 300

OUT_OF_GPU_MEMORY: Final = "out of GPU memory"
OUT_OF_MEMORY: Final = "out of memory"

_GPU_BUFFER: Final = r"allocate (?:CUDA|ROCm|HIP|MUSA|Vulkan|SYCL|CANN|OpenCL|RPC)"
# From telling to vague: the last line that the first matching pattern finds is the explanation.
# llama-server says what is wrong once, and then on each level that the load failed.
_CAUSES: Final = tuple(
    (cause, re.compile(pattern))
    for cause, pattern in (
        ("", r"error while loading shared libraries|cannot execute"),
        (
            OUT_OF_GPU_MEMORY,
            r"Malloc failed: out of memory|allocating [0-9.]+ MiB on device"
            r"|(?:CUDA|ROCm|HIP|MUSA) error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
            r"|ErrorOutOfDeviceMemory|Device memory allocation of size",
        ),
        (OUT_OF_GPU_MEMORY, rf"failed to {_GPU_BUFFER}|unable to {_GPU_BUFFER}"),
        (
            OUT_OF_MEMORY,
            r"bad_alloc|[Cc]annot allocate memory|ErrorOutOfHostMemory|out of memory"
            r"|insufficient memory",
        ),
        (
            OUT_OF_MEMORY,
            r"(?:failed|unable) to allocate (?:CPU|buffer|[0-9 .]+ MB|[0-9]+ bytes|compute|memory)"
            r"|failed to allocate \S+ buffer of size|failed to reserve memory",
        ),
        ("the disk is full", r"No space left on device"),
        ("over a disk quota", r"Disk quota exceeded"),
        (
            "unsupported architecture (a newer llama.cpp may know it)",
            r"unknown model architecture",
        ),
        (
            "unsupported model (a newer llama.cpp may know it)",
            r"unknown pre-tokenizer|unknown tokenizer|has invalid ggml type|invalid ggml type"
            r"|only supports up to version|wrong number of tensors|unsupported (?:model|GGUF)",
        ),
        ("a file is missing", r"No such file or directory|Does this file exist"),
        ("a file may not be read", r"Permission denied"),
        (
            "corrupt or incomplete model file",
            r"not within the file bounds|model is corrupted|corrupted model|invalid magic"
            r"|(?:GGUF|gguf)\S* .*extremely large|string length [0-9]+ exceeds"
            r"|unexpectedly reached end of file|missing tensor|missing key|tensor '[^']*' not found"
            r"|tensor '[^']*' has wrong shape|tensor '[^']*' is duplicated|has offset [0-9]+, expected"
            r"|key not found in model|inval?id split|illegal split|Input/output error",
        ),
        (
            "corrupt or incomplete model file",
            r"failed to read (?:magic|header|key-value|tensor)|encountered (?:length|bad_alloc)_error",
        ),
        (
            "the GPU is not supported by this build of llama.cpp",
            r"no kernel image is available|device kernel image is invalid|invalid device function",
        ),
        (
            "the GPU or its driver failed",
            r"(?:CUDA|ROCm|HIP|MUSA) error: |ErrorDeviceLost|ErrorInitializationFailed"
            r"|failed to initialize (?:CUDA|ROCm|HIP|MUSA)",
        ),
        ("", r"error while handling argument|invalid argument|unrecognized|couldn't bind"),
        ("", r"error loading model:"),
        ("it crashed", r"what\(\):|GGML_ASSERT|GGML_ABORT|ggml_abort|fatal error"),
        ("", r"\berror: |failed to initialize|failed to create|failed to load"),
        ("", r"^\S+ E |(?i:\berror\b|\bfailed\b|exception)"),
    )
)
# The assertion stands above the stack.
_STACK_FRAME: Final = re.compile(r"#[0-9]+ ")
# What it tells a client about a request is no reason to end.
_ABOUT_REQUESTS: Final = re.compile(r"send_error|cancel task|exceeds the available context")

# "0.00.028.691 E llama_model_load: ...": time since start and severity say nothing to a reader.
_PREFIX: Final = re.compile(r"^[0-9]+(?:\.[0-9]+){2,} [A-Z] ")

_SIGNALS: Final[Mapping[int, str]] = {
    signal.SIGKILL: "it was ended from outside",
    signal.SIGILL: "this build of llama.cpp needs a processor with more instructions",
    signal.SIGBUS: "a model file was cut off while it was in use, or its disk failed",
    signal.SIGSEGV: "it crashed",
    signal.SIGABRT: "it crashed",
    signal.SIGXFSZ: "a file that it wrote grew larger than allowed (LimitFSIZE=)",
    signal.SIGXCPU: "it used more CPU time than allowed (LimitCPU=)",
    signal.SIGSYS: "the sandbox forbids one of its system calls (SystemCallFilter=)",
}


def explain_end(status: int, lines: Sequence[str], *, oom_killed: bool) -> str:
    """Return why it ended, "" when nothing tells.

    `status` as subprocess has it (negative: a signal); `lines` are the last of its log, oldest
    first; `oom_killed`: the kernel has ended a process of ours for want of memory.
    """
    if status == -signal.SIGKILL and oom_killed:
        return (
            f"{OUT_OF_MEMORY}: the kernel ended it (OOM killer), because the machine, or a limit "
            "such as MemoryMax=, has no room for it"
        )
    cause, line = _find(lines)
    if status < 0 and not cause:
        cause = _SIGNALS.get(-status, "")
        if status == -signal.SIGKILL:
            return cause  # what it said before somebody killed it is not why
    return ": ".join(filter(None, (cause, shown(line))))


def explain(lines: Sequence[str]) -> str:
    """Return what its log says of why it ended, "" if it said nothing."""
    return explain_end(1, lines, oom_killed=False)


def shown(line: str) -> str:
    """Return a line of its log as one short printable line."""
    text = "".join(each if each.isprintable() else " " for each in _PREFIX.sub("", line))
    return " ".join(text.split())[:_SHOWN_CHARACTERS]


def _find(lines: Sequence[str]) -> tuple[str, str]:
    """Return the cause that the log tells, "" for none, and the line that tells most."""
    candidates = [
        line for line in lines if not (_ABOUT_REQUESTS.search(line) or _STACK_FRAME.match(line))
    ]
    for cause, pattern in _CAUSES:
        for line in reversed(candidates):
            if pattern.search(line):
                return cause, line
    return "", next((line for line in reversed(candidates) if line.strip()), "")
