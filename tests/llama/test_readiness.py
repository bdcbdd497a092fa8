"""When a llama-server counts as ready, and when it is alive."""

import asyncio
import contextlib
import io
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.config.settings import ModelSettings
from rolemesh.llama.activity import ServerActivity
from rolemesh.llama.command import ServerCommand
from rolemesh.llama.readiness import (
    Health,
    Loading,
    NotAnswering,
    Wedged,
    check_health,
    choose_trial,
    keep_watch,
)
from rolemesh.llama.server import LlamaServer, open_server
from rolemesh.llama.server_process import ServerEnded, start_server
from rolemesh.llama.wedge import WedgeDetector
from rolemesh.llama.wedge_watch import WedgeWatch
from rolemesh.names import ModelId
from rolemesh.relay.fetch import fetch
from tests.lab.poll import eventually

PROGRAM = Path(__file__).parents[1] / "fakes" / "llama_program.py"
CODER = ModelId("coder")
MODEL = ModelSettings(model_id=CODER, path=Path("/m.gguf"), roles=())


@contextlib.asynccontextmanager
async def faked(folder: Path, *args: str) -> AsyncIterator[tuple[LlamaServer, UpstreamAddress]]:
    """Run the misbehaving program with these arguments."""
    socket = folder / "http.sock"
    command = ServerCommand(
        argv=(sys.executable, str(PROGRAM), "--host", str(socket), *args),
        environment=dict(os.environ),
    )
    lock_fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        started = start_server(command, lock_fd=lock_fd)
        async with open_server(
            started, sink=io.BytesIO(), line_prefix="", told=lambda _text: None
        ) as server:
            yield server, UpstreamAddress.unix(str(socket))
    finally:
        os.close(lock_fd)


async def load(
    folder: Path, *args: str, timeout_s: float = 20, option: str = ""
) -> list[tuple[str, float]]:
    """Load with the misbehaving program; return what was told."""
    told: list[tuple[str, float]] = []
    async with faked(folder, *args) as (server, address):
        await Loading(
            server=server,
            address=address,
            trial=choose_trial(MODEL, (option,)),
            model_id=CODER,
            model_bytes=1 << 40,
            timeout_s=timeout_s,
            told=lambda text, extension_s: told.append((text, extension_s)),
        ).finish()
    return told


@pytest.mark.parametrize("option", ["", "--embeddings", "--rerank"])
async def test_an_answer_ends_the_loading(short_path: Path, option: str) -> None:
    told = await load(short_path, option=option)
    assert told[0] == ("loading coder: 0% (0 s)", 30.0)
    assert told[-1] == ("coder is loaded; waiting for its first token", 50.0)


@pytest.mark.parametrize(
    ("option", "path", "body"),
    [
        ("-fa", "/v1/completions", b'{"model": "coder", "prompt": "a", "max_tokens": 1}'),
        ("--embedding", "/v1/embeddings", b'{"model": "coder", "input": "a"}'),
        (
            "--reranking",
            "/v1/rerank",
            b'{"model": "coder", "query": "a", "documents": ["a"]}',
        ),
    ],
)
def test_what_is_tried_is_what_the_server_is_for(option: str, path: str, body: bytes) -> None:
    trial = choose_trial(MODEL, ("-c", "1", option))
    assert (trial.path, trial.body) == (path, body)


def test_what_a_model_is_for_its_keys_say() -> None:
    assert choose_trial(replace(MODEL, embeddings=True), ()).path == "/v1/embeddings"
    assert choose_trial(replace(MODEL, rerank=True), ()).path == "/v1/rerank"


@pytest.mark.parametrize(
    ("fake", "text"),
    [
        (
            "mute",
            "llama-server is up, but POST /v1/completions gave status 500: "
            '{"error": {"message": "no kernel image is available"}}',
        ),
        (
            "empty",
            'llama-server is up, but POST /v1/completions gave status 200: {"choices": []}',
        ),
    ],
)
async def test_health_alone_is_not_enough(short_path: Path, fake: str, text: str) -> None:
    with pytest.raises(NotAnswering) as caught:
        await load(short_path, "--fake", fake)
    assert str(caught.value) == text


async def test_an_end_at_the_first_token_is_an_end(short_path: Path) -> None:
    with pytest.raises(ServerEnded) as caught:
        await load(short_path, "--fake", "dies-on-first")
    assert str(caught.value) == (
        "llama-server exited with status 9: it crashed: what(): the first token was too much"
    )


async def test_a_hang_at_the_first_token_is_given_up(short_path: Path) -> None:
    with pytest.raises(NotAnswering) as caught:
        await load(short_path, "--fake", "hangs-on-first", timeout_s=1)
    assert str(caught.value) == (
        "llama-server is up, but gave no result of POST /v1/completions within 1 s; "
        "policy.load_timeout_s says how long to wait"
    )


@pytest.mark.parametrize("fake", ["silent", "loading"])
async def test_a_load_without_progress_is_given_up(short_path: Path, fake: str) -> None:
    with pytest.raises(NotAnswering) as caught:
        await load(short_path, "--fake", fake, timeout_s=1)
    assert str(caught.value).startswith(
        "llama-server makes no progress with coder since 1 s (loading"
    )
    assert str(caught.value).endswith("policy.load_timeout_s says how long to wait")


async def test_a_load_that_goes_on_may_take_long(short_path: Path) -> None:
    loading = asyncio.wait_for(load(short_path, "--fake", "talkative", timeout_s=0.5), 1.5)
    with pytest.raises(TimeoutError):
        await loading


async def test_health_is_asked_of_who_is_there(short_path: Path) -> None:
    address = UpstreamAddress.unix(str(short_path / "http.sock"))
    assert await check_health(address) is Health.SILENT
    async with faked(short_path, "--fake", "loading"):

        async def is_loading() -> bool:
            return await check_health(address) is Health.LOADING

        await eventually(is_loading, what="it says that it loads")


def wedge_watch(
    server: LlamaServer, address: UpstreamAddress, *, wedge_after_s: float = 60
) -> WedgeWatch:
    return WedgeWatch(
        detector=WedgeDetector(wedge_after_s=wedge_after_s, batch_tokens=1, first_token_s=0.001),
        activity=ServerActivity(address=address, pid=server.pid, gpus=()),
        lines_logged=lambda: server.log.line_count,
    )


async def test_one_that_is_healthy_but_wedged_is_given_up(short_path: Path) -> None:
    async with faked(short_path, "--fake", "wedged") as (server, address):

        async def is_healthy() -> bool:
            return await check_health(address) is Health.OK

        await eventually(is_healthy, what="it is healthy")
        chat = asyncio.gather(
            fetch(address, "POST", "/v1/chat/completions", body=b"{}", timeout_s=60),
            return_exceptions=True,
        )
        with pytest.raises(Wedged) as caught:
            await keep_watch(
                server=server,
                address=address,
                wedges=wedge_watch(server, address, wedge_after_s=0.4),
                interval_s=0.1,
                alive=lambda: None,
                silent=lambda _text: None,
            )
    assert str(caught.value).startswith(f"llama-server (pid {server.pid}) is wedged: busy for ")
    await chat


async def test_life_is_only_what_was_just_answered(short_path: Path) -> None:
    alive: list[float] = []
    silent: list[str] = []
    clock = asyncio.get_running_loop().time
    async with faked(short_path) as (server, address):
        await eventually(Path(address.socket_path).exists, what="it listens")
        watch = asyncio.gather(
            keep_watch(
                server=server,
                address=address,
                wedges=wedge_watch(server, address),
                interval_s=0.1,
                alive=lambda: alive.append(clock()),
                silent=silent.append,
            ),
            return_exceptions=True,
        )
        await eventually(lambda: len(alive) > 2, what="alive")
        os.kill(server.pid, signal.SIGSTOP)
        await eventually(lambda: len(silent) > 2, what="silent")
        count = len(alive)
        silent.clear()
        await eventually(lambda: len(silent) > 2, what="still silent")
        assert len(alive) == count
        assert silent[0].startswith(
            f"llama-server (pid {server.pid}) does not answer /health since"
        )
        os.kill(server.pid, signal.SIGCONT)
        await eventually(lambda: len(alive) > count, what="alive again")
        os.kill(server.pid, signal.SIGKILL)
        (error,) = await watch
    assert isinstance(error, ServerEnded)
    assert error.status == -9
