"""The command line and the environment of a llama-server."""

from pathlib import Path
from typing import Any

import pytest

from rolemesh.config.settings import DraftModel, LlamaServer, Lora, ModelSettings, NodeSettings
from rolemesh.llama.command import (
    NO_GPU,
    Devices,
    arguments_hash,
    build_argv,
    build_environment,
    devices_from,
    reserved_option,
    set_options,
    settings_hash,
)
from rolemesh.llama.server_options import UNKNOWN_BUILD, ServerBuild, read_build
from rolemesh.names import ModelId, NodeId

GPU0, TWO_GPUS = Devices(uuids=("GPU-1",)), Devices(uuids=("GPU-1", "GPU-2"))


def argv(
    devices: Devices = GPU0,
    build: ServerBuild = UNKNOWN_BUILD,
    slots: Path | None = None,
    extra_args: tuple[str, ...] = (),
    **fields: Any,
) -> str:
    model = ModelSettings(
        model_id=ModelId("coder"), path=Path("/models/c.gguf"), roles=(), **fields
    )
    return " ".join(
        build_argv(
            program=Path("/usr/bin/llama-server"),
            model=model,
            socket=Path("/run/rolemesh-llama/gpu0/http.sock"),
            build=build,
            options=set_options(model, build, devices, slots),
            extra_args=extra_args,
        )
    )


def knowing(**options: str) -> ServerBuild:
    """Return a build with these options: name (_ for -) and what its --help says of its value."""
    lines = [
        f"--{name.replace('_', '-')} {hint}".rstrip().ljust(40) + "does something"
        for name, hint in {
            "model": "F",
            "host": "H",
            "port": "P",
            "ctx_size": "N",
            "n_gpu_layers": "N",
            **options,
        }.items()
    ]
    return read_build("\n".join(lines), "version: 1 (abc)")


def test_a_command_line_names_model_alias_and_socket() -> None:
    assert argv() == (
        "/usr/bin/llama-server -m /models/c.gguf --alias coder "
        "--host /run/rolemesh-llama/gpu0/http.sock --port 9931 -np 1 -ngl 999 --fit off "
        "--sse-ping-interval -1 --threads-http 16 --slots"
    )


def test_the_context_is_that_of_all_slots_together() -> None:
    assert " -np 4 -c 32768 " in f"{argv(context_size=8192, parallel=4)} "


def test_many_slots_get_threads_to_spare() -> None:
    assert "--threads-http 40 " in argv(parallel=32)


def test_a_cpu_instance_is_kept_off_the_gpus() -> None:
    assert argv(NO_GPU).endswith(" --device none")
    assert "-ngl" not in argv(NO_GPU, gpu_layers=9)
    assert "--device" not in argv()


def test_devices_with_names_are_named_after_what_may_make_them() -> None:
    line = argv(devices_from(("RPC0", "RPC1")), args=("--rpc", "10.0.0.2:50052"))
    assert line.endswith(" --rpc 10.0.0.2:50052 --device RPC0,RPC1")
    assert argv(NO_GPU, args=("-dev", "CUDA0")).endswith(" -dev CUDA0")


def test_a_model_over_several_gpus_is_split_evenly() -> None:
    assert " -ts 1,1 " in argv(TWO_GPUS)
    assert "-ts" not in argv()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"gpu_layers": 20}, "-ngl 20"),
        ({"cache_type_k": "q8_0", "cache_type_v": "q4_0"}, "-ctk q8_0 -ctv q4_0"),
        ({"flash_attention": True}, "-fa on"),
        ({"flash_attention": False}, "-fa off"),
        ({"batch_size": 1024, "ubatch_size": 256, "threads": 3}, "-b 1024 -ub 256 -t 3"),
        ({"lora": (Lora(path=Path("/a")), Lora(path=Path("/b")))}, "--lora /a,/b"),
        (
            {"lora": (Lora(path=Path("/a")), Lora(path=Path("/b"), scale=0.5))},
            "--lora-scaled /a:1,/b:0.5",
        ),
        ({"mmproj": Path("/p")}, "--mmproj /p"),
        (
            {"draft_model": DraftModel(path=Path("/d"), max_tokens=8)},
            "-md /d --spec-type draft-simple -ngld 999 --spec-draft-n-max 8",
        ),
        ({"draft_model": DraftModel(path=Path("/d"), gpu_layers=0)}, "-ngld 0"),
        ({"chat_template": "chatml"}, "--no-jinja --chat-template chatml"),
        ({"chat_template_file": Path("/t")}, "--jinja --chat-template-file /t"),
        ({"embeddings": True, "pooling": "mean"}, "--pooling mean --embeddings"),
        ({"rerank": True}, "--rerank"),
    ],
)
def test_a_key_becomes_an_option(fields: dict[str, Any], expected: str) -> None:
    assert f" {expected} " in argv(**fields)


def test_slots_are_saved_where_the_instance_says() -> None:
    assert argv(slots=Path("/cache/slots/gpu0")).endswith(" --slot-save-path /cache/slots/gpu0")


def test_an_older_build_is_spoken_to_in_its_words() -> None:
    lora = (Lora(path=Path("/a"), scale=2), Lora(path=Path("/b")))
    older = knowing(flash_attn="", lora_scaled="FNAME SCALE", draft_max="N", model_draft="F")
    draft = DraftModel(path=Path("/d"), max_tokens=8)
    line = argv(build=older, lora=lora, draft_model=draft, flash_attention=True)
    assert " --lora-scaled /a 2 --lora-scaled /b 1 --model-draft /d --draft-max 8" in line
    assert "--flash-attn --lora-scaled" in line
    assert "--flash-attn" not in argv(build=older, flash_attention=False)
    # What it does not know is left out, where nobody asked for it.
    assert "--fit" not in line
    assert "--slots" not in line


def test_the_operators_arguments_come_last_and_win() -> None:
    line = argv(
        extra_args=("--flash-attn", "on"),
        args=("--ctx_size", "512", "-ctk", "q8_0"),
        context_size=4096,
        flash_attention=False,
        cache_type_k="f16",
    )
    assert line.endswith(" --slots --flash-attn on --ctx_size 512 -ctk q8_0")
    assert [line.count(each) for each in (" -c ", "-fa", "f16")] == [0, 0, 0]


def test_what_determines_an_engine_is_hashed_and_nothing_else() -> None:
    def hashed(line: str, engine: str = "0.7.0") -> str:
        return arguments_hash(engine, line.split())

    plain = hashed(argv())
    assert len(plain) == 16
    assert hashed(argv().replace("/run/rolemesh-llama/gpu0", "/elsewhere")) == plain
    assert hashed(argv().replace("/usr/bin", "/opt")) == plain
    assert hashed(argv(TWO_GPUS, slots=Path("/cache"))) == hashed(argv(slots=Path("/other")))
    assert hashed(argv(devices_from(("Vulkan0",)))) == hashed(argv(devices_from(("Vulkan1",))))
    others = {
        hashed(argv(), "0.8.0"),
        hashed(argv(NO_GPU)),
        hashed(argv(context_size=512)),
        hashed(argv(args=("--mlock",))),
    }
    assert len(others | {plain}) == 5


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
    environment = build_environment(INHERITED, GPU0)
    assert environment.keys() == passed | {"HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"}


@pytest.mark.parametrize(
    ("devices", "inherited", "visible"),
    [
        (GPU0, {}, "GPU-1"),
        (TWO_GPUS, {"CUDA_VISIBLE_DEVICES": "GPU-9"}, "GPU-1,GPU-2"),
        (NO_GPU, {"CUDA_VISIBLE_DEVICES": "GPU-9"}, ""),
        (devices_from(("GPU-1", "MIG-2")), {}, "GPU-1,MIG-2"),
        (devices_from(("ROCm0",)), {}, None),
        (devices_from(()), {}, ""),
        (Devices(numbers=(2,)), {}, "2"),
        (Devices(numbers=(2, 3)), {}, "2,3"),
        (Devices(numbers=(2,)), {"CUDA_VISIBLE_DEVICES": "GPU-9"}, "GPU-9"),
    ],
)
def test_an_instance_sees_its_devices_and_no_others(
    devices: Devices, inherited: dict[str, str], visible: str | None
) -> None:
    environment = build_environment(inherited, devices)
    assert environment.get("CUDA_VISIBLE_DEVICES") == visible
    by_number = visible is not None and visible.startswith("2")
    assert ("CUDA_DEVICE_ORDER" in environment) == by_number


@pytest.mark.parametrize(
    ("args", "reserved"),
    [
        ((), None),
        (("-ngl", "99", "--embeddings"), None),
        (("-ngl", "99", "--port", "80"), "--port"),
        (("--host=0.0.0.0",), "--host"),
        (("-m", "x"), "-m"),
        (("--api_key", "x"), "--api_key"),
        (("-np", "4"), "-np"),
        (("--list-devices",), "--list-devices"),
    ],
)
def test_options_that_are_rolemeshs_alone_are_found(
    args: tuple[str, ...], reserved: str | None
) -> None:
    assert reserved_option(args) == reserved


def test_the_hash_of_settings_is_the_same_in_every_version() -> None:
    # As version 0.1.0 computed it: its llama-servers go on under the agents of later versions,
    # which restart what was started with other settings.
    model = ModelSettings(
        model_id=ModelId("coder"),
        path=Path("/models/c.gguf"),
        roles=(),
        lora=(Lora(path=Path("/models/l.gguf"), scale=0.5),),
        draft_model=DraftModel(path=Path("/models/d.gguf"), max_tokens=8),
        args=("--mlock",),
    )
    server = LlamaServer(path=Path("/usr/bin/llama-server"), args=("--no-mmap", "--verbose"))
    settings = NodeSettings(node_id=NodeId("box"), llama_server=server)
    assert settings_hash(settings, model) == "c28fdbd316117cc8"
