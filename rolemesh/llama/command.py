"""The command line and environment of a llama-server; pure."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final

from rolemesh.config.settings import DraftModel, Lora, ModelSettings, NodeSettings
from rolemesh.llama.model_options import Option, model_options
from rolemesh.llama.server_options import ServerBuild, plain_name
from rolemesh.names import InstanceName

# llama-server insists on a port even when it listens on a UNIX socket.
UNUSED_PORT: Final = 9931
MIN_HTTP_THREADS: Final = 16
SPARE_HTTP_THREADS: Final = 8

_PATH: Final = "the model's `path` says it"
_NO_NETWORK: Final = "llama-server has no network; fetch the file and set the model's `path`"
_SOCKET: Final = "llama-server listens on a private socket"
_KEYS: Final = "the socket is private; keys belong into `auth` of the node's configuration"
_TLS: Final = "the socket is private and needs no TLS"
_ENDS: Final = "llama-server would print something and end"
_SLOTS: Final = "the agent counts the slots; set the model's `parallel`"

# Options that say where llama-server is reached and what it loads: RoleMesh's alone.
RESERVED_OPTIONS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("-m", "--model"), _PATH),
    **dict.fromkeys(("-mu", "--model-url", "-hf", "-hfr", "--hf-repo"), _NO_NETWORK),
    **dict.fromkeys(("--host", "--port", "--reuse-port"), _SOCKET),
    "--api-prefix": "the agent expects llama-server's own paths",
    **dict.fromkeys(("--api-key", "--api-key-file"), _KEYS),
    **dict.fromkeys(("--ssl-key-file", "--ssl-cert-file"), _TLS),
    **dict.fromkeys(("-np", "--parallel", "--n-parallel"), _SLOTS),
    "--no-slots": "whether llama-server works is read from its slots",
    "--slot-save-path": "nobody but its own agent reaches llama-server; set `save_slots`",
    **dict.fromkeys(("-h", "--help", "--usage", "--version", "--list-devices"), _ENDS),
    **dict.fromkeys(("-cl", "--cache-list", "--completion-bash"), _ENDS),
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


# Arguments of ours whose value says where something is.
_PLACES: Final = frozenset({"--host", "--port", "--slot-save-path", "-ts", "--tensor-split"})

UUID_PREFIXES: Final = ("GPU-", "MIG-")

# What settings_hash has always counted, default or not. This list is never added to.
_ALWAYS_HASHED: Final[Mapping[type, frozenset[str]]] = {
    ModelSettings: frozenset({
        "model_id", "path", "roles", "context_size", "parallel", "gpu_layers", "gpus",
        "cache_type_k", "cache_type_v", "flash_attention", "batch_size", "ubatch_size", "threads",
        "lora", "mmproj", "draft_model", "chat_template", "chat_template_file", "embeddings",
        "rerank", "pooling", "save_slots", "memory_mib", "warm", "idle_unload_s", "args", "origin",
    }),
    Lora: frozenset({"path", "scale"}),
    DraftModel: frozenset({"path", "gpu_layers", "max_tokens"}),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """The devices of an instance, said in one of three ways.

    `uuids` of GPUs and of MIG slices as CUDA knows them, none of them for the CPU; `names` as of
    `llama-server --list-devices`; or `numbers` of GPUs in PCI order.
    """

    uuids: tuple[str, ...] | None = None
    names: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.uuids or self.names or self.numbers)


NO_GPU: Final = Devices(uuids=())


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCommand:
    """What to execute; argv[0] is the path of the program."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]


def set_options(
    model: ModelSettings, build: ServerBuild, devices: Devices, slot_directory: Path | None
) -> tuple[Option, ...]:
    """Return what RoleMesh sets for a model, beside its path and where it is reached.

    `slot_directory` is where the llama-server may save the KV cache of its slots.
    """
    threads = max(MIN_HTTP_THREADS, model.parallel + SPARE_HTTP_THREADS)
    return (
        *_device_options(devices),
        *model_options(model, build, gpus=devices.count),
        # Pings are the gateway's business, and comments are not a first byte.
        Option(names=("--sse-ping-interval",), values=("-1",)),
        # Every idle keep-alive connection holds one of these threads for 5 s.
        Option(names=("--threads-http",), values=(str(threads),)),
        Option(names=("--slots",)),
        *_slot_options(slot_directory),
    )


def _device_options(devices: Devices) -> Iterator[Option]:
    if devices.names or not devices.count:
        # Last: a device may be there only by what is said before, such as --rpc.
        values = (",".join(devices.names) or "none",)
        yield Option(names=("--device", "-dev"), values=values, last=True)


def _slot_options(directory: Path | None) -> Iterator[Option]:
    if directory is not None:
        yield Option(names=("--slot-save-path",), values=(str(directory),), key="save_slots")


def build_argv(
    *,
    program: Path,
    model: ModelSettings,
    socket: Path,
    build: ServerBuild,
    options: Iterable[Option],
    extra_args: Sequence[str],
) -> tuple[str, ...]:
    """Return the command line: our `options`, `extra_args` (every model's), then the model's own.

    The operator's arguments win: an option that they name is not given twice, and llama-server
    lets the later of two equal ones win.
    """
    args = (*extra_args, *model.args)
    given = {plain_name(arg) for arg in args}
    argv = [str(program), "-m", str(model.path), "--alias", model.model_id]
    argv += ["--host", str(socket), "--port", str(UNUSED_PORT), "-np", str(model.parallel)]
    last: list[str] = []
    for option in options:
        name = build.choose(option.names)
        if name is not None and given.isdisjoint(option.names):
            (last if option.last else argv).extend((name, *option.values))
    return (*argv, *args, *last)


def arguments_hash(engine: str, argv: Sequence[str]) -> str:
    """Return a short hash of what determines how an engine behaves.

    `engine` is what the program is: its build, or its file. Where it is reached, where it saves
    and which GPUs it has do not count.
    """
    counted = [engine]
    rest = iter(argv[1:])
    for argument in rest:
        if argument in _PLACES:
            next(rest, None)
        elif argument == "--device":
            # Whether there is one does count.
            counted.append(str(next(rest, "") == "none"))
        else:
            counted.append(argument)
    return hashlib.sha256("\0".join(counted).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def build_environment(inherited: Mapping[str, str], devices: Devices) -> dict[str, str]:
    """Return what the llama-server sees of `inherited`, and which GPUs of CUDA.

    A CUDA_VISIBLE_DEVICES of a drop-in's goes before numbers: those are only a default.
    """
    environment = {name: value for name, value in inherited.items() if _is_passed(name)}
    if devices.uuids is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices.uuids)
    elif devices.numbers and "CUDA_VISIBLE_DEVICES" not in environment:
        # In PCI order, which is NVML's.
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices.numbers))
    return environment


def devices_from(words: tuple[str, ...]) -> Devices:
    """Return devices as the agent names them: UUIDs of GPUs, or llama-server's own names."""
    if all(word.startswith(UUID_PREFIXES) for word in words):
        return Devices(uuids=words)
    return Devices(names=words)


def reserved_option(args: Sequence[str]) -> str | None:
    """Return the first option in `args` that is RoleMesh's alone, None if there is none."""
    names = (arg.partition("=")[0] for arg in args)
    return next((name for name in names if plain_name(name) in RESERVED_OPTIONS), None)


def settings_hash(settings: NodeSettings, model: ModelSettings) -> str:
    """Return what changes with the settings that a llama-server of the model is started with.

    It outlives this program: the agent of a later version compares it with its own. So a setting
    that is new counts only where it is set.
    """
    server = settings.llama_server
    text = _described((as_run(model), server.path, server.args))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _described(value: Any) -> str:
    """Return repr(value), without the fields that a later version has added, at their defaults."""
    if isinstance(value, tuple):
        items = ", ".join(map(_described, value))
        return f"({items},)" if len(value) == 1 else f"({items})"
    if not is_dataclass(value):
        return repr(value)
    always = _ALWAYS_HASHED.get(type(value), frozenset())
    given = {each: getattr(value, each.name) for each in fields(value)}
    items = ", ".join(
        f"{each.name}={_described(own)}"
        for each, own in given.items()
        if each.name in always or own != each.default
    )
    return f"{type(value).__qualname__}({items})"


def as_run(model: ModelSettings) -> ModelSettings:
    """Return a model with what does not reach its llama-server left out."""
    return replace(model, roles=(), origin="", warm=False, idle_unload_s=None, memory_mib=None)


def is_cpu(instance: InstanceName) -> bool:
    """Tell whether an instance runs without a GPU."""
    return instance.startswith("cpu")


def _is_passed(name: str) -> bool:
    return name in _PASSED_NAMES or name.startswith(_PASSED_PREFIXES)
