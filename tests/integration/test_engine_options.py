"""The keys of a model are understood by a real llama-server as they are meant."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.llama_host import LlamaHost
from tests.lab.adapters import make_adapter
from tests.lab.llama_server import NoLlamaServer
from tests.lab.processes import Program, free_port
from tests.lab.rpc_devices import rpc_programs

CHAT = {"messages": [{"role": "user", "content": "hello"}]}

Configure = Callable[..., None]


@pytest.fixture
def configure(
    llama_host: LlamaHost, llama_server: Path, make_model: Callable[..., Path]
) -> Configure:
    """Configure the tiny model with further keys."""

    def configured(**fields: Any) -> None:
        llama_host.configure(llama_server, make_model("tiny-a"), **fields)

    return configured


async def test_what_is_cached_and_how_it_is_computed(
    llama_host: LlamaHost, configure: Configure
) -> None:
    configure(
        cache_type_k="q8_0",
        cache_type_v="q8_0",
        flash_attention=True,
        batch_size=256,
        ubatch_size=64,
        threads=2,
        gpu_layers=1,
    )
    program = await llama_host.start()
    arguments = " ".join(llama_host.arguments)
    for expected in ("-ctk q8_0 -ctv q8_0", "-fa on", "-b 256 -ub 64 -t 2", "--device none"):
        assert expected in arguments
    assert "-ngl" not in arguments
    slots = await llama_host.ask("/slots")
    assert [slot["n_ctx"] for slot in slots] == [1024, 1024]
    await llama_host.stop(program)


async def test_what_the_operator_gives_wins(llama_host: LlamaHost, configure: Configure) -> None:
    configure(cache_type_k="q8_0", args=["--cache-type-k", "f16", "-c", "512"])
    program = await llama_host.start()
    assert llama_host.arguments.count("--cache-type-k") == 1
    assert "-ctk" not in llama_host.arguments
    slots = await llama_host.ask("/slots")
    assert [slot["n_ctx"] for slot in slots] == [256, 256]
    assert [line for line in program.lines() if "DEPRECATED" in line] == []
    await llama_host.stop(program)


@pytest.mark.parametrize("scales", [(1, 1), (1, 0.5)])
async def test_adapters_are_applied_in_order(
    llama_host: LlamaHost, configure: Configure, tmp_path: Path, scales: tuple[float, ...]
) -> None:
    paths = [make_adapter(tmp_path / name) for name in ("a.gguf", "b.gguf")]
    lora = [{"path": str(path), "scale": scale} for path, scale in zip(paths, scales, strict=True)]
    configure(lora=lora)
    program = await llama_host.start()
    loaded = await llama_host.ask("/lora-adapters")
    assert [(each["path"], each["scale"]) for each in loaded] == [
        (str(path), scale) for path, scale in zip(paths, scales, strict=True)
    ]
    await llama_host.stop(program)


async def test_an_adapter_changes_what_a_model_says(
    llama_host: LlamaHost, configure: Configure, tmp_path: Path
) -> None:
    configure(lora=[{"path": str(make_adapter(tmp_path / "loud.gguf", loud=True))}])
    program = await llama_host.start()
    said = await llama_host.ask("/v1/completions", {"prompt": "a", "max_tokens": 20})
    assert not said["choices"][0]["text"].startswith("Hello from tiny-a")
    await llama_host.stop(program)


async def test_a_draft_model_proposes(
    llama_host: LlamaHost, configure: Configure, make_model: Callable[..., Path]
) -> None:
    configure(draft_model={"path": str(make_model("tiny-a")), "max_tokens": 4})
    program = await llama_host.start()
    said = await llama_host.ask("/completion", {"prompt": "a", "n_predict": 40})
    assert said["content"].strip().startswith("Hello from tiny-a")
    assert said["timings"]["draft_n"] > 0
    await llama_host.stop(program)


async def test_a_chat_template_by_name_or_from_a_file(
    llama_host: LlamaHost, configure: Configure, tmp_path: Path
) -> None:
    configure(chat_template="llama2")
    program = await llama_host.start()
    assert "[INST] hello" in (await llama_host.ask("/apply-template", CHAT))["prompt"]
    await llama_host.stop(program)
    template = tmp_path / "chat.jinja"
    template.write_text("SAID: {{ messages[0].content }}")
    configure(chat_template_file=str(template))
    program = await llama_host.start()
    assert (await llama_host.ask("/apply-template", CHAT))["prompt"] == "SAID: hello"
    await llama_host.stop(program)


async def test_embeddings_are_pooled_as_asked(llama_host: LlamaHost, configure: Configure) -> None:
    configure(embeddings=True, pooling="mean")
    program = await llama_host.start()
    reply = await llama_host.ask("/v1/embeddings", {"input": "hello", "model": "coder"})
    assert len(reply["data"][0]["embedding"]) == 64
    await llama_host.stop(program)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("cache_type_k", "q9_0", r"does not know q9_0 for -ctk; did you mean \"q8_0\"\?"),
        ("pooling", "max", r"does not know max for --pooling"),
        ("chat_template", "lama2", r"lama2 for --chat-template; did you mean \"llama2\"\?"),
        ("args", ["-fa", "-c", "9"], r"-fa expects a value .*, found the option -c after it"),
    ],
)
async def test_what_the_build_does_not_take_is_refused_before_the_start(
    llama_host: LlamaHost, configure: Configure, key: str, value: Any, text: str
) -> None:
    configure(**{key: value})
    program = llama_host.run()
    assert await program.end() == 78
    await program.line(rf"CRITICAL .*node\.yaml:\d+: models\.coder\.{key}: .*{text}")


@pytest.mark.llama
async def test_a_model_is_split_evenly_over_devices_with_names(
    llama_host: LlamaHost, start_program: Callable[..., Program], make_model: Callable[..., Path]
) -> None:
    try:
        programs = rpc_programs()
    except NoLlamaServer as err:
        pytest.skip(str(err))
    ports = [free_port() for _ in range(2)]
    for port in ports:
        serving = start_program([programs.rpc_server, "-H", "127.0.0.1", "-p", str(port)])
        await serving.line(rf"endpoint *: 127\.0\.0\.1:{port}")
    rpc = ",".join(f"127.0.0.1:{port}" for port in ports)
    model = make_model("tiny-a")
    llama_host.configure(programs.llama_server, model, args=["--rpc", rpc, "-lv", "4"])
    llama_host.tell("RPC0", "RPC1")
    program = await llama_host.start("gpu0")
    arguments = " ".join(llama_host.arguments)
    assert "-ngl 999 -ts 1,1 --fit off" in arguments
    assert arguments.endswith("--device RPC0,RPC1")
    said = await llama_host.ask("/completion", {"prompt": "a", "n_predict": 40})
    assert said["content"].strip().startswith("Hello from tiny-a")
    for port in ports:
        await program.line(rf":{port}\] model buffer size")
    await llama_host.stop(program)
