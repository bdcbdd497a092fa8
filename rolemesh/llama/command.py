"""The command line and environment of a llama-server; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rolemesh.config.settings import ModelSettings
from rolemesh.names import InstanceName

# llama-server insists on a port even when it listens on a UNIX socket.
UNUSED_PORT: Final = 9931
MIN_HTTP_THREADS: Final = 16
SPARE_HTTP_THREADS: Final = 8

# Options that say where llama-server is reached and what it loads: RoleMesh's alone.
RESERVED_OPTIONS: Final[Mapping[str, str]] = {
    "-m": "the model's `path` says it",
    "--model": "the model's `path` says it",
    "--host": "llama-server listens on a private socket",
    "--port": "llama-server listens on a private socket",
    "--reuse-port": "llama-server listens on a private socket",
    "--api-prefix": "the agent expects llama-server's own paths",
    "--api-key": "the socket is private; keys belong into `auth` of the node's configuration",
    "--api-key-file": "the socket is private; keys belong into `auth` of the node's configuration",
    "--ssl-key-file": "the socket is private and needs no TLS",
    "--ssl-cert-file": "the socket is private and needs no TLS",
}

# What llama-server, its GPU libraries and the loader read. Everything else stays out, above all
# LLAMA_ARG_* (every option has such a name: they would silently change the command line),
# LLAMA_API_KEY, NOTIFY_SOCKET and the credentials directory. ROLEMESH_* means nothing to it and
# tells whose process it is.
_PASSED_NAMES: Final = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR",
    "LD_LIBRARY_PATH", "XDG_CACHE_HOME", "XDG_DATA_DIRS",
})  # fmt: skip
_PASSED_PREFIXES: Final = (
    "LC_", "CUDA_", "NVIDIA_", "NCCL_", "GGML_", "HIP_", "HSA_", "ROCM_", "ROCR_", "AMD_", "GPU_",
    "VK_", "MESA_", "ONEAPI_", "SYCL_", "ZE_", "OMP_", "GOMP_", "OPENBLAS_", "MKL_", "ROLEMESH_",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCommand:
    """What to execute; argv[0] is the path of the program."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]


def build_argv(
    *,
    program: Path,
    instance: InstanceName,
    model: ModelSettings,
    socket: Path,
    extra_args: Sequence[str],
) -> tuple[str, ...]:
    """Return the command line: ours, then `extra_args` (every model's), then the model's own.

    llama-server lets the later of two equal options win. `-c` is the context of all slots
    together; without a context_size llama-server takes what the model was trained for.
    """
    context = model.context_size
    return (
        *(str(program), "-m", str(model.path), "--alias", model.model_id),
        *("--host", str(socket), "--port", str(UNUSED_PORT)),
        *(("-c", str(context * model.parallel)) if context is not None else ()),
        *("-np", str(model.parallel)),
        # Pings are the gateway's business, and comments are not a first byte.
        *("--sse-ping-interval", "-1"),
        # Every idle keep-alive connection holds one of these threads for 5 s.
        *("--threads-http", str(max(MIN_HTTP_THREADS, model.parallel + SPARE_HTTP_THREADS))),
        "--slots",
        *(("--device", "none") if is_cpu(instance) else ()),
        *extra_args,
        *model.args,
    )


def build_environment(
    inherited: Mapping[str, str], instance: InstanceName, devices: tuple[str, ...] | None
) -> dict[str, str]:
    """Return what the llama-server sees of `inherited`, and which devices.

    `devices` None: nobody said which. Then CUDA_VISIBLE_DEVICES as inherited (a drop-in's), else
    gpuN is the N-th GPU in PCI order, which is NVML's.
    """
    environment = {name: value for name, value in inherited.items() if _is_passed(name)}
    if is_cpu(instance):
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    elif "CUDA_VISIBLE_DEVICES" not in environment:
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        environment["CUDA_VISIBLE_DEVICES"] = instance[3:].partition("-")[0]
    return environment


def reserved_option(args: Sequence[str]) -> str | None:
    """Return the first option in `args` that is RoleMesh's alone, None if there is none."""
    names = (arg.partition("=")[0] for arg in args)
    return next((name for name in names if name in RESERVED_OPTIONS), None)


def is_cpu(instance: InstanceName) -> bool:
    """Tell whether an instance runs without a GPU."""
    return instance.startswith("cpu")


def _is_passed(name: str) -> bool:
    return name in _PASSED_NAMES or name.startswith(_PASSED_PREFIXES)
