"""The command line and the environment of a llama-server."""

from pathlib import Path

import pytest

from rolemesh.config.settings import ModelSettings
from rolemesh.llama.command import build_argv, build_environment, reserved_option
from rolemesh.names import InstanceName, ModelId

GPU0, CPU0 = InstanceName("gpu0"), InstanceName("cpu0")


def argv(
    instance: InstanceName = GPU0,
    *,
    context_size: int | None = None,
    parallel: int = 1,
    args: tuple[str, ...] = (),
) -> str:
    model = ModelSettings(
        model_id=ModelId("coder"),
        path=Path("/models/c.gguf"),
        roles=(),
        context_size=context_size,
        parallel=parallel,
        args=args,
    )
    return " ".join(
        build_argv(
            program=Path("/usr/bin/llama-server"),
            instance=instance,
            model=model,
            socket=Path("/run/rolemesh-llama/gpu0/http.sock"),
            extra_args=("--flash-attn", "on"),
        )
    )


def test_a_command_line_names_model_alias_and_socket() -> None:
    assert argv() == (
        "/usr/bin/llama-server -m /models/c.gguf --alias coder "
        "--host /run/rolemesh-llama/gpu0/http.sock --port 9931 -np 1 --sse-ping-interval -1 "
        "--threads-http 16 --slots --flash-attn on"
    )


def test_the_context_is_that_of_all_slots_together() -> None:
    assert " -c 32768 -np 4 " in argv(context_size=8192, parallel=4)


def test_many_slots_get_threads_to_spare() -> None:
    assert "--threads-http 40 " in argv(parallel=32)


def test_a_cpu_instance_is_kept_off_the_gpus() -> None:
    assert " --device none " in argv(CPU0)
    assert "--device" not in argv(GPU0)


def test_the_models_own_arguments_come_last_and_so_win() -> None:
    assert argv(args=("-c", "512")).endswith("--flash-attn on -c 512")


INHERITED = {
    "PATH": "/usr/bin",
    "HOME": "/var/lib/x",
    "LC_ALL": "C",
    "LD_LIBRARY_PATH": "/opt/cuda",
    "GGML_BACKEND_PATH": "/opt/b",
    "HIP_VISIBLE_DEVICES": "1",
    "LLAMA_ARG_HOST": "0.0.0.0",
    "LLAMA_API_KEY": "secret",
    "NOTIFY_SOCKET": "/run/systemd/notify",
    "WATCHDOG_USEC": "1",
    "CREDENTIALS_DIRECTORY": "/run/credentials",
    "AWS_SECRET": "x",
}


def test_only_what_llama_server_and_its_libraries_read_is_passed_on() -> None:
    passed = {"PATH", "HOME", "LC_ALL", "LD_LIBRARY_PATH", "GGML_BACKEND_PATH"}
    environment = build_environment(INHERITED, GPU0, ("GPU-1",))
    assert environment.keys() == passed | {"HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"}


@pytest.mark.parametrize(
    ("instance", "devices", "inherited", "visible"),
    [
        ("gpu0", ("GPU-1",), {}, "GPU-1"),
        ("gpu0", ("GPU-1", "GPU-2"), {"CUDA_VISIBLE_DEVICES": "GPU-9"}, "GPU-1,GPU-2"),
        ("gpu0", (), {}, ""),
        ("cpu0", ("GPU-1",), {}, ""),
        ("cpu0", None, {"CUDA_VISIBLE_DEVICES": "GPU-9"}, ""),
        ("gpu2-embed", None, {}, "2"),
        ("gpu2", None, {"CUDA_VISIBLE_DEVICES": "GPU-9"}, "GPU-9"),
    ],
)
def test_an_instance_sees_its_devices_and_no_others(
    instance: str, devices: tuple[str, ...] | None, inherited: dict[str, str], visible: str
) -> None:
    environment = build_environment(inherited, InstanceName(instance), devices)
    assert environment["CUDA_VISIBLE_DEVICES"] == visible
    assert ("CUDA_DEVICE_ORDER" in environment) == visible.isdigit()


@pytest.mark.parametrize(
    ("args", "reserved"),
    [
        ((), None),
        (("-ngl", "99", "--embeddings"), None),
        (("-ngl", "99", "--port", "80"), "--port"),
        (("--host=0.0.0.0",), "--host"),
        (("-m", "x"), "-m"),
    ],
)
def test_options_that_are_rolemeshs_alone_are_found(
    args: tuple[str, ...], reserved: str | None
) -> None:
    assert reserved_option(args) == reserved
