"""A conversation that a restart of its llama-server does not make anybody read again."""

from collections.abc import Callable
from pathlib import Path

from tests.integration.llama_host import LlamaHost

PROMPTS = (
    " ".join(["the of and to in is you that it he"] * 20),
    "hello model " + " ".join(["was for on are as with his they at be"] * 30),
)


async def test_after_a_restart_prompts_are_not_read_again(
    llama_host: LlamaHost, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    llama_host.configure(llama_server, make_model("tiny-a"), save_slots=True)
    program = await llama_host.start()
    lengths = [sum(await llama_host.read(prompt)) for prompt in PROMPTS]
    await llama_host.stop(program)
    await program.line(r"saved 2 slots \(\d+ tokens, 0 MiB\)")
    assert len(llama_host.kept) == 1

    program = await llama_host.start()
    await program.line(r"restored 2 slots")
    for prompt, length in zip(PROMPTS, lengths, strict=True):
        cached, read = await llama_host.read(f"{prompt} user")
        assert cached >= length - 1
        assert read <= 2
    assert llama_host.kept == []
    await llama_host.stop(program)


async def test_another_engine_gets_nothing_of_it(
    llama_host: LlamaHost, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    llama_host.configure(llama_server, make_model("tiny-a"), save_slots=True)
    program = await llama_host.start()
    length = sum(await llama_host.read(PROMPTS[0]))
    await llama_host.stop(program)
    llama_host.configure(llama_server, make_model("tiny-a"), save_slots=True, cache_type_k="q8_0")
    program = await llama_host.start()
    assert await llama_host.read(PROMPTS[0]) == (0, length)
    await llama_host.stop(program)
    assert len(llama_host.kept) == 2


async def test_what_is_damaged_is_one_warning_and_the_start_goes_on(
    llama_host: LlamaHost, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    llama_host.configure(llama_server, make_model("tiny-a"), save_slots=True)
    program = await llama_host.start()
    length = sum(await llama_host.read(PROMPTS[0]))
    await llama_host.stop(program)
    (kept,) = llama_host.kept
    file = next(kept.glob("*.bin"))
    file.write_bytes(file.read_bytes()[:-1])
    program = await llama_host.start()
    await program.line(r"WARNING .*was not restored: slot-\d+\.bin is not what was saved")
    assert await llama_host.read(PROMPTS[0]) == (0, length)
    await llama_host.stop(program)


async def test_nothing_is_kept_of_a_model_that_does_not_ask_for_it(
    llama_host: LlamaHost, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    llama_host.configure(llama_server, make_model("tiny-a"))
    program = await llama_host.start()
    await llama_host.read(PROMPTS[0])
    await llama_host.stop(program)
    assert llama_host.kept == []
